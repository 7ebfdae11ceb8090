/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The load-balancer maps and the look-up in them: frontend -> master entry -> slot -> backend.
 *
 * The maps of services and backends are not preallocated: they are sized for the largest cluster and
 * must cost nothing in a small one.
 */
#include "common.h"
#include "lb_types.h"

#define LB_TRIES 2	/* one more look when a slot vanished between the two look-ups */

#define LB_HASH(name, key_type, value_type)			\
	struct {						\
		__uint(type, BPF_MAP_TYPE_HASH);		\
		__type(key, key_type);				\
		__type(value, value_type);			\
		__uint(max_entries, 65536);			\
		__uint(map_flags, BPF_F_NO_PREALLOC);		\
	} name SEC(".maps")

LB_HASH(cilia_lb4_svc, struct lb4_key, struct lb_service);
LB_HASH(cilia_lb6_svc, struct lb6_key, struct lb_service);
LB_HASH(cilia_lb4_be, struct lb_backend_key, struct lb4_backend);
LB_HASH(cilia_lb6_be, struct lb_backend_key, struct lb6_backend);
LB_HASH(cilia_lb4_rev, struct lb_rev_key, struct lb4_rev);
LB_HASH(cilia_lb6_rev, struct lb_rev_key, struct lb6_rev);

LB_HASH(cilia_lb4_affm, struct lb_affinity_match_key, struct lb_present);
LB_HASH(cilia_lb6_affm, struct lb_affinity_match_key, struct lb_present);

/* Frontends that wait for traffic to have backends made for them. */
LB_HASH(cilia_lb4_s2z, struct lb_rev_key, struct lb_present);
LB_HASH(cilia_lb6_s2z, struct lb_rev_key, struct lb_present);

#define LB_LRU(name, key_type, value_type)			\
	struct {						\
		__uint(type, BPF_MAP_TYPE_LRU_HASH);		\
		__type(key, key_type);				\
		__type(value, value_type);			\
		__uint(max_entries, 65536);			\
	} name SEC(".maps")

LB_LRU(cilia_lb4_aff, struct lb4_affinity_key, struct lb_affinity);
LB_LRU(cilia_lb6_aff, struct lb6_affinity_key, struct lb_affinity);

#define LB_LPM(name, key_type)					\
	struct {						\
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);		\
		__type(key, key_type);				\
		__type(value, struct lb_source);		\
		__uint(max_entries, 65536);			\
		__uint(map_flags, BPF_F_NO_PREALLOC);		\
	} name SEC(".maps")

LB_LPM(cilia_lb4_src, struct lb4_source_key);
LB_LPM(cilia_lb6_src, struct lb6_source_key);

/* BPF_F_INNER_MAP: tables may differ in size. A table is swapped for its successor in one step. */
struct lb_maglev_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct lb_maglev_part));
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP);
};

#define LB_MAGLEV(name)						\
	struct {						\
		__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);	\
		__type(key, struct lb_rev_key);			\
		__uint(max_entries, 65536);			\
		__uint(map_flags, BPF_F_NO_PREALLOC);		\
		__array(values, struct lb_maglev_table);	\
	} name SEC(".maps")

LB_MAGLEV(cilia_lb4_mglv);
LB_MAGLEV(cilia_lb6_mglv);

/* The master entry for what a client inside the cluster dials, or NULL. Leaves the scope that
 * matched in key. */
static __always_inline struct lb_service *lb4_service(struct lb4_key *key)
{
	struct lb_service *svc;

	key->slot = 0;
	key->scope = LB_SCOPE_EXTERNAL;
	svc = bpf_map_lookup_elem(&cilia_lb4_svc, key);
	if (svc && (svc->flags & LB_SVC_TWO_SCOPES)) {
		key->scope = LB_SCOPE_INTERNAL;
		svc = bpf_map_lookup_elem(&cilia_lb4_svc, key);
	}
	return svc;
}

static __always_inline struct lb_service *lb6_service(struct lb6_key *key)
{
	struct lb_service *svc;

	key->slot = 0;
	key->scope = LB_SCOPE_EXTERNAL;
	svc = bpf_map_lookup_elem(&cilia_lb6_svc, key);
	if (svc && (svc->flags & LB_SVC_TWO_SCOPES)) {
		key->scope = LB_SCOPE_INTERNAL;
		svc = bpf_map_lookup_elem(&cilia_lb6_svc, key);
	}
	return svc;
}

/* A random backend among the slots 1..count and its id, or NULL if there is none. The master entry
 * is read again when the slot or the backend is gone: the frontend shrank after svc was read. */
static __always_inline struct lb4_backend *lb4_backend_random(struct lb4_key *key,
							      const struct lb_service *svc,
							      __u32 *backend_id)
{
	const struct lb_service *slot;
	struct lb4_backend *backend;

	for (int i = 0; i < LB_TRIES && svc && svc->count; i++) {
		key->slot = bpf_get_prandom_u32() % svc->count + 1;
		slot = bpf_map_lookup_elem(&cilia_lb4_svc, key);
		if (slot) {
			*backend_id = slot->backend_id;
			backend = bpf_map_lookup_elem(&cilia_lb4_be, backend_id);
			if (backend)
				return backend;
		}
		key->slot = 0;
		svc = bpf_map_lookup_elem(&cilia_lb4_svc, key);
	}
	return NULL;
}

static __always_inline struct lb6_backend *lb6_backend_random(struct lb6_key *key,
							      const struct lb_service *svc,
							      __u32 *backend_id)
{
	const struct lb_service *slot;
	struct lb6_backend *backend;

	for (int i = 0; i < LB_TRIES && svc && svc->count; i++) {
		key->slot = bpf_get_prandom_u32() % svc->count + 1;
		slot = bpf_map_lookup_elem(&cilia_lb6_svc, key);
		if (slot) {
			*backend_id = slot->backend_id;
			backend = bpf_map_lookup_elem(&cilia_lb6_be, backend_id);
			if (backend)
				return backend;
		}
		key->slot = 0;
		svc = bpf_map_lookup_elem(&cilia_lb6_svc, key);
	}
	return NULL;
}

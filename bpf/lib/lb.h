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

/* A random backend among the slots 1..count, or NULL if there is none. The master entry is read
 * again when the slot or the backend is gone: the frontend shrank after svc was read. */
static __always_inline struct lb4_backend *lb4_backend_random(struct lb4_key *key,
							      const struct lb_service *svc)
{
	const struct lb_service *slot;
	struct lb4_backend *backend;

	for (int i = 0; i < LB_TRIES && svc && svc->count; i++) {
		key->slot = bpf_get_prandom_u32() % svc->count + 1;
		slot = bpf_map_lookup_elem(&cilia_lb4_svc, key);
		if (slot) {
			backend = bpf_map_lookup_elem(&cilia_lb4_be, &slot->backend_id);
			if (backend)
				return backend;
		}
		key->slot = 0;
		svc = bpf_map_lookup_elem(&cilia_lb4_svc, key);
	}
	return NULL;
}

static __always_inline struct lb6_backend *lb6_backend_random(struct lb6_key *key,
							      const struct lb_service *svc)
{
	const struct lb_service *slot;
	struct lb6_backend *backend;

	for (int i = 0; i < LB_TRIES && svc && svc->count; i++) {
		key->slot = bpf_get_prandom_u32() % svc->count + 1;
		slot = bpf_map_lookup_elem(&cilia_lb6_svc, key);
		if (slot) {
			backend = bpf_map_lookup_elem(&cilia_lb6_be, &slot->backend_id);
			if (backend)
				return backend;
		}
		key->slot = 0;
		svc = bpf_map_lookup_elem(&cilia_lb6_svc, key);
	}
	return NULL;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The load-balancer maps and the look-up in them: frontend -> master entry -> slot -> backend.
 *
 * The maps of services and backends are not preallocated: they are sized for the largest cluster and
 * must cost nothing in a small one.
 */
#include "common.h"
#include "lb_types.h"
#include "tuple.h"

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

/* A frontend or one of its slots, in the map of its family. */
union lb_key {
	struct lb4_key v4;
	struct lb6_key v6;
};

static __always_inline void lb_key_of(union lb_key *key, const __be32 *address, __be16 port,
				      __u8 proto, const bool v6)
{
	__builtin_memset(key, 0, sizeof(*key));
	if (v6) {
		address_copy(key->v6.address, address, true);
		key->v6.dport = port;
		key->v6.proto = proto;
	} else {
		key->v4.address = *address;
		key->v4.dport = port;
		key->v4.proto = proto;
	}
}

/* Ask for the surrogate, which stands for every address of the node. */
static __always_inline void lb_key_any_address(union lb_key *key, const bool v6)
{
	if (v6)
		__builtin_memset(key->v6.address, 0, sizeof(key->v6.address));
	else
		key->v4.address = 0;
}

static __always_inline void lb_key_slot(union lb_key *key, __u16 slot, const bool v6)
{
	if (v6)
		key->v6.slot = slot;
	else
		key->v4.slot = slot;
}

static __always_inline void lb_key_scope(union lb_key *key, __u8 scope, const bool v6)
{
	if (v6)
		key->v6.scope = scope;
	else
		key->v4.scope = scope;
}

/* The entry of the key as it stands, or NULL. */
static __always_inline struct lb_service *lb_entry(const union lb_key *key, const bool v6)
{
	if (v6)
		return bpf_map_lookup_elem(&cilia_lb6_svc, &key->v6);
	return bpf_map_lookup_elem(&cilia_lb4_svc, &key->v4);
}

/* The master entry for what a client inside the cluster dials, or NULL. Leaves the scope that
 * matched in key. */
static __always_inline struct lb_service *lb_service(union lb_key *key, const bool v6)
{
	struct lb_service *svc;

	lb_key_slot(key, 0, v6);
	lb_key_scope(key, LB_SCOPE_EXTERNAL, v6);
	svc = lb_entry(key, v6);
	if (svc && (svc->flags & LB_SVC_TWO_SCOPES)) {
		lb_key_scope(key, LB_SCOPE_INTERNAL, v6);
		svc = lb_entry(key, v6);
	}
	return svc;
}

/* A backend, of either family. */
struct lb_target {
	__be32 address[4];
	__be16 port;
	__u8 state;		/* LB_BE_* */
	__u8 pad;
	__u32 id;
};

/* Read a backend; false if there is none of this id (any more). */
static __always_inline bool lb_target(struct lb_target *target, __u32 id, const bool v6)
{
	target->id = id;
	if (v6) {
		const struct lb6_backend *backend = bpf_map_lookup_elem(&cilia_lb6_be, &id);

		if (!backend)
			return false;
		address_copy(target->address, backend->address, true);
		target->port = backend->port;
		target->state = backend->state;
	} else {
		const struct lb4_backend *backend = bpf_map_lookup_elem(&cilia_lb4_be, &id);

		if (!backend)
			return false;
		target->address[0] = backend->address;
		target->port = backend->port;
		target->state = backend->state;
	}
	return true;
}

/* A random backend among the slots 1..count; false if there is none. The master entry is read again when
 * the slot or the backend is gone: the frontend shrank after svc was read. */
static __always_inline bool lb_random(struct lb_target *target, union lb_key *key,
				      const struct lb_service *svc, const bool v6)
{
	const struct lb_service *slot;

	for (int i = 0; i < LB_TRIES && svc && svc->count; i++) {
		lb_key_slot(key, bpf_get_prandom_u32() % svc->count + 1, v6);
		slot = lb_entry(key, v6);
		if (slot && lb_target(target, slot->backend_id, v6))
			return true;
		lb_key_slot(key, 0, v6);
		svc = lb_entry(key, v6);
	}
	return false;
}

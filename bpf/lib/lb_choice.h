/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Which backend a new flow gets: the one that its client stays with, that of the flow's position in
 * the Maglev table, or a random one. Only slots 1..count are ever chosen. */
#include "lb.h"
#include "lb_hash.h"

union lb_key {
	struct lb4_key v4;
	struct lb6_key v6;
};

/* Of both families. */
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

static __always_inline bool lb_random(struct lb_target *target, union lb_key *key,
				      const struct lb_service *svc, const bool v6)
{
	__u32 id = 0;

	if (v6)
		return lb6_backend_random(&key->v6, svc, &id) && lb_target(target, id, true);
	return lb4_backend_random(&key->v4, svc, &id) && lb_target(target, id, false);
}

/* False also if the frontend has no table: then it is served at random. */
static __always_inline bool lb_maglev(struct lb_target *target, const struct tuple *tuple,
				      __u32 rev_nat, const bool v6)
{
	__u32 position = lb_hash(tuple, v6) % lb_maglev_size;
	__u32 part = position / 256;
	const struct lb_maglev_part *words;
	void *table;

	if (v6)
		table = bpf_map_lookup_elem(&cilia_lb6_mglv, &rev_nat);
	else
		table = bpf_map_lookup_elem(&cilia_lb4_mglv, &rev_nat);
	if (!table)
		return false;
	words = bpf_map_lookup_elem(table, &part);
	return words && lb_target(target, words->backend_id[position & 255], v6);
}

static __always_inline bool lb_flow(struct lb_target *target, union lb_key *key,
				    const struct lb_service *svc, const struct tuple *tuple,
				    const bool v6)
{
	__u32 algorithm = svc->algorithm == LB_ALG_UNDEF ? lb_algorithm : svc->algorithm;

	/* Connections of packets are not counted by backend. */
	if (algorithm == LB_ALG_LEAST_CONNECTIONS)
		algorithm = LB_ALG_MAGLEV;
	if (algorithm == LB_ALG_MAGLEV && svc->count && lb_maglev(target, tuple, svc->rev_nat, v6))
		return true;
	return lb_random(target, key, svc, v6);
}

#define LB_NSEC_PER_S 1000000000ULL

union lb_affinity_key {
	struct lb4_affinity_key v4;
	struct lb6_affinity_key v6;
};

static __always_inline void lb_client_key(union lb_affinity_key *client, const struct tuple *tuple,
					  __u32 rev_nat, const bool v6)
{
	__builtin_memset(client, 0, sizeof(*client));
	if (v6) {
		__builtin_memcpy(client->v6.client, tuple->saddr, sizeof(client->v6.client));
		client->v6.rev_nat = rev_nat;
	} else {
		client->v4.client = tuple->saddr[0];
		client->v4.rev_nat = rev_nat;
	}
}

/* The backend that the client's address has, if its time is not over and it still may stay. */
static __always_inline bool lb_held(struct lb_target *target, const union lb_affinity_key *client,
				    const struct lb_service *svc, __u64 now_ns, const bool v6)
{
	struct lb_affinity_match_key match = { .rev_nat = svc->rev_nat };
	struct lb_affinity *held;
	void *allowed;

	if (v6)
		held = bpf_map_lookup_elem(&cilia_lb6_aff, &client->v6);
	else
		held = bpf_map_lookup_elem(&cilia_lb4_aff, &client->v4);
	if (!held || (__s64)(now_ns - held->last_used_ns) >
			     (__s64)(svc->affinity_timeout_s * LB_NSEC_PER_S))
		return false;
	match.backend_id = held->backend_id;
	if (v6)
		allowed = bpf_map_lookup_elem(&cilia_lb6_affm, &match);
	else
		allowed = bpf_map_lookup_elem(&cilia_lb4_affm, &match);
	if (!allowed || !lb_target(target, match.backend_id, v6))
		return false;
	held->last_used_ns = now_ns;
	return true;
}

/* Choose for a new flow whose tuple is that of the client, before translation. False: nobody serves. */
static __noinline bool lb_choose(struct lb_target *target, union lb_key *key,
				 const struct lb_service *svc, const struct tuple *tuple, bool v6)
{
	struct lb_affinity chosen = {};
	union lb_affinity_key client;

	if (!(svc->flags & LB_SVC_AFFINITY))
		return lb_flow(target, key, svc, tuple, v6);
	lb_client_key(&client, tuple, svc->rev_nat, v6);
	chosen.last_used_ns = bpf_ktime_get_ns();
	if (lb_held(target, &client, svc, chosen.last_used_ns, v6))
		return true;
	if (!lb_flow(target, key, svc, tuple, v6))
		return false;
	chosen.backend_id = target->id;
	if (v6)
		bpf_map_update_elem(&cilia_lb6_aff, &client.v6, &chosen, BPF_ANY);
	else
		bpf_map_update_elem(&cilia_lb4_aff, &client.v4, &chosen, BPF_ANY);
	return true;
}

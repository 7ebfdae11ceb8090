/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Which backend a new flow gets: the one that its client stays with, that of the flow's position in
 * the Maglev table, or a random one. Only slots 1..count are ever chosen. */
#include "lb_affinity.h"
#include "lb_hash.h"

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

/* Choose for a new flow whose tuple is that of the client, before translation. False: nobody serves. */
static __noinline bool lb_choose(struct lb_target *target, union lb_key *key,
				 const struct lb_service *svc, const struct tuple *tuple, bool v6)
{
	union lb_affinity_key client;
	__u64 now_ns;

	if (!(svc->flags & LB_SVC_AFFINITY))
		return lb_flow(target, key, svc, tuple, v6);
	lb_client_key(&client, tuple, svc->rev_nat, v6);
	now_ns = bpf_ktime_get_ns();
	if (lb_held(target, &client, svc, now_ns, v6))
		return true;
	if (!lb_flow(target, key, svc, tuple, v6))
		return false;
	lb_hold(&client, target->id, now_ns, v6);
	return true;
}

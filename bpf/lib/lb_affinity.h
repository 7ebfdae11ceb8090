/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The backend that a client stays with: a socket's client is its network namespace, a packet's its
 * address. */
#include "lb.h"

union lb_affinity_key {
	struct lb4_affinity_key v4;
	struct lb6_affinity_key v6;
};

/* Read the backend that the client has, if its time is not over and it still may stay. */
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
			     (__s64)(svc->affinity_timeout_s * NSEC_PER_S))
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

/* The client has this backend from now on. */
static __always_inline void lb_hold(const union lb_affinity_key *client, __u32 backend_id, __u64 now_ns,
				    const bool v6)
{
	struct lb_affinity chosen = { .last_used_ns = now_ns, .backend_id = backend_id };

	if (v6)
		bpf_map_update_elem(&cilia_lb6_aff, &client->v6, &chosen, BPF_ANY);
	else
		bpf_map_update_elem(&cilia_lb4_aff, &client->v4, &chosen, BPF_ANY);
}

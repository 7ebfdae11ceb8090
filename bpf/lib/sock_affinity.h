/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Which backend a socket gets: its client's for as long as the affinity lasts, else a random one,
 * or that with fewer connections. A choice at the socket is made once and on this node, so nobody has
 * to repeat it by a table. */
#include "lb_affinity.h"
#include "lb_load.h"

static __always_inline bool sock_choose_new(struct lb_target *target, union lb_key *key,
					    const struct lb_service *svc, const bool v6)
{
	return lb_wants_least(svc) ? lb_least(target, key, svc, v6) : lb_random(target, key, svc, v6);
}

/* The client of a socket is its network namespace. */
static __always_inline void sock_client_key(struct bpf_sock_addr *ctx, union lb_affinity_key *client,
					    __u32 rev_nat, const bool v6)
{
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);

	if (v6)
		client->v6 = (struct lb6_affinity_key){
			.client = { netns_cookie },
			.rev_nat = rev_nat,
			.is_netns = 1,
		};
	else
		client->v4 = (struct lb4_affinity_key){
			.client = netns_cookie,
			.rev_nat = rev_nat,
			.is_netns = 1,
		};
}

/* Choose the backend that this client has, or a new one, which the client has from now on. False: nobody
 * serves. */
static __always_inline bool sock_choose(struct bpf_sock_addr *ctx, struct lb_target *target,
					union lb_key *key, const struct lb_service *svc, const bool v6)
{
	union lb_affinity_key client;
	__u64 now_ns;

	if (!(svc->flags & LB_SVC_AFFINITY))
		return sock_choose_new(target, key, svc, v6);
	sock_client_key(ctx, &client, svc->rev_nat, v6);
	now_ns = bpf_ktime_get_ns();
	if (lb_held(target, &client, svc, now_ns, v6))
		return true;
	if (!sock_choose_new(target, key, svc, v6))
		return false;
	lb_hold(&client, target->id, now_ns, v6);
	return true;
}

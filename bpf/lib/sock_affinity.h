/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Which backend a socket gets: its client's for as long as the affinity lasts, else a random one,
 * or that with fewer connections. A choice at the socket is made once and on this node, so nobody has
 * to repeat it by a table. */
#include "common.h"
#include "lb.h"
#include "lb_load.h"

#define NSEC_PER_SEC 1000000000LL

static __always_inline struct lb4_backend *sock4_new_backend(struct lb4_key *key,
							       const struct lb_service *svc,
							       __u32 *backend_id)
{
	if (lb_wants_least(svc))
		return lb4_backend_least(key, svc, backend_id);
	return lb4_backend_random(key, svc, backend_id);
}

/* The backend that this client has, if its time is not over and it still serves; else a new one, which
 * the client has from now on. Its id is left in *backend_id. */
static __always_inline struct lb4_backend *sock4_backend(struct bpf_sock_addr *ctx,
							   struct lb4_key *key,
							   const struct lb_service *svc,
							   __u32 *backend_id)
{
	struct lb4_affinity_key client = { .rev_nat = svc->rev_nat, .is_netns = 1 };
	struct lb_affinity_match_key match = { .rev_nat = svc->rev_nat };
	struct lb_affinity chosen = { .last_used_ns = bpf_ktime_get_ns() };
	__s64 timeout_ns = svc->affinity_timeout_s * NSEC_PER_SEC;
	struct lb4_backend *backend;
	struct lb_affinity *held;

	if (!(svc->flags & LB_SVC_AFFINITY))
		return sock4_new_backend(key, svc, backend_id);
	client.client = bpf_get_netns_cookie(ctx);
	held = bpf_map_lookup_elem(&cilia_lb4_aff, &client);
	if (held && (__s64)(chosen.last_used_ns - held->last_used_ns) <= timeout_ns) {
		match.backend_id = held->backend_id;
		backend = NULL;
		if (bpf_map_lookup_elem(&cilia_lb4_affm, &match))
			backend = bpf_map_lookup_elem(&cilia_lb4_be, &match.backend_id);
		if (backend) {
			held->last_used_ns = chosen.last_used_ns;
			*backend_id = match.backend_id;
			return backend;
		}
	}
	backend = sock4_new_backend(key, svc, backend_id);
	if (backend) {
		chosen.backend_id = *backend_id;
		bpf_map_update_elem(&cilia_lb4_aff, &client, &chosen, BPF_ANY);
	}
	return backend;
}

static __always_inline struct lb6_backend *sock6_new_backend(struct lb6_key *key,
							       const struct lb_service *svc,
							       __u32 *backend_id)
{
	if (lb_wants_least(svc))
		return lb6_backend_least(key, svc, backend_id);
	return lb6_backend_random(key, svc, backend_id);
}

/* The backend that this client has, if its time is not over and it still serves; else a new one, which
 * the client has from now on. Its id is left in *backend_id. */
static __always_inline struct lb6_backend *sock6_backend(struct bpf_sock_addr *ctx,
							   struct lb6_key *key,
							   const struct lb_service *svc,
							   __u32 *backend_id)
{
	struct lb6_affinity_key client = { .rev_nat = svc->rev_nat, .is_netns = 1 };
	struct lb_affinity_match_key match = { .rev_nat = svc->rev_nat };
	struct lb_affinity chosen = { .last_used_ns = bpf_ktime_get_ns() };
	__s64 timeout_ns = svc->affinity_timeout_s * NSEC_PER_SEC;
	struct lb6_backend *backend;
	struct lb_affinity *held;

	if (!(svc->flags & LB_SVC_AFFINITY))
		return sock6_new_backend(key, svc, backend_id);
	client.client[0] = bpf_get_netns_cookie(ctx);
	held = bpf_map_lookup_elem(&cilia_lb6_aff, &client);
	if (held && (__s64)(chosen.last_used_ns - held->last_used_ns) <= timeout_ns) {
		match.backend_id = held->backend_id;
		backend = NULL;
		if (bpf_map_lookup_elem(&cilia_lb6_affm, &match))
			backend = bpf_map_lookup_elem(&cilia_lb6_be, &match.backend_id);
		if (backend) {
			held->last_used_ns = chosen.last_used_ns;
			*backend_id = match.backend_id;
			return backend;
		}
	}
	backend = sock6_new_backend(key, svc, backend_id);
	if (backend) {
		chosen.backend_id = *backend_id;
		bpf_map_update_elem(&cilia_lb6_aff, &client, &chosen, BPF_ANY);
	}
	return backend;
}

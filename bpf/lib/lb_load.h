/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* How many connections the sockets of this node have to each backend, and the choice that follows:
 * of two random backends the one with fewer. Two choices are enough to leave a slow backend alone, and
 * unlike the best of all they do not send everybody to the same one at once.
 *
 * Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001. */
#include "lb.h"

/* Positions of counters. Ids are given in turn, so two backends share one only if there are more. */
#define LB_LOADS 131072

/* Set before load; the verifier removes all of this where no service wants it. */
const volatile bool sock_counts = false;
const volatile __u32 sock_algorithm = LB_ALG_RANDOM;	/* of services that name none */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct lb_load);
	__uint(max_entries, LB_LOADS);
} cilia_lb_load SEC(".maps");

/* Where a socket is counted. Gone with the socket, whose release takes it off the count before. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct lb_counted);
} cilia_lb_counted SEC(".maps");

static __always_inline bool lb_wants_least(const struct lb_service *svc)
{
	__u32 algorithm = svc->algorithm == LB_ALG_UNDEF ? sock_algorithm : svc->algorithm;

	return sock_counts && algorithm == LB_ALG_LEAST_CONNECTIONS;
}

/* Both families have ids of their own. */
static __always_inline __u32 lb_load_position(__u32 backend_id, const bool v6)
{
	return (2 * backend_id + v6) % LB_LOADS;
}

static __always_inline void lb_load_add(__u32 position, __s32 number)
{
	struct lb_load *load = bpf_map_lookup_elem(&cilia_lb_load, &position);

	if (load)
		__sync_fetch_and_add(&load->connections, number);
}

static __always_inline __u64 lb_load_of(__u32 backend_id, const bool v6)
{
	__u32 position = lb_load_position(backend_id, v6);
	const struct lb_load *load = bpf_map_lookup_elem(&cilia_lb_load, &position);

	return load && load->connections > 0 ? load->connections : 0;
}

/* Count a socket at a position, or nowhere (0: positions begin with 1 here). */
static __always_inline void lb_count(struct lb_counted *counted, __u32 position)
{
	if (counted->position == position)
		return;
	if (counted->position)
		lb_load_add(counted->position - 1, -1);
	counted->position = position;
	if (position)
		lb_load_add(position - 1, 1);
}

/* A socket that connects has a backend now; one that cannot be remembered is not counted. */
static __always_inline void lb_count_begin(struct bpf_sock_addr *ctx, __u32 backend_id, const bool v6)
{
	struct lb_counted *counted;

	if (!ctx->sk)
		return;
	counted = bpf_sk_storage_get(&cilia_lb_counted, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (counted)
		lb_count(counted, lb_load_position(backend_id, v6) + 1);
}

static __always_inline void lb_count_end(struct bpf_sock *sock)
{
	struct lb_counted *counted;

	if (!sock_counts)
		return;
	counted = bpf_sk_storage_get(&cilia_lb_counted, sock, NULL, 0);
	if (counted)
		lb_count(counted, 0);
}

/* Id of the backend with fewer connections for its weight, of two slots; 0 if one is gone. */
static __always_inline __u32 lb_less_loaded(union lb_key *key, __u32 one, __u32 other, const bool v6)
{
	const struct lb_service *first, *second;
	__u64 of_first, of_second;

	lb_key_slot(key, one, v6);
	first = lb_entry(key, v6);
	lb_key_slot(key, other, v6);
	second = lb_entry(key, v6);
	if (!first || !second)
		return 0;
	of_first = (lb_load_of(first->backend_id, v6) + 1) * (second->weight ? second->weight : 1);
	of_second = (lb_load_of(second->backend_id, v6) + 1) * (first->weight ? first->weight : 1);
	return of_second < of_first ? second->backend_id : first->backend_id;
}

/* The backend with fewer connections, of two slots that differ; a random one if there is no choice. */
static __always_inline bool lb_least(struct lb_target *target, union lb_key *key,
				     const struct lb_service *svc, const bool v6)
{
	__u32 count = svc->count, one, other;

	if (count > 1) {
		one = bpf_get_prandom_u32() % count;
		other = (one + 1 + bpf_get_prandom_u32() % (count - 1)) % count;
		if (lb_target(target, lb_less_loaded(key, one + 1, other + 1, v6), v6))
			return true;
	}
	return lb_random(target, key, svc, v6);
}

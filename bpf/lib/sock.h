/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Translation at the socket: the address that an application dials becomes a backend's before a
 * packet exists, and the backend's address becomes the service's again where the application
 * reads it. The functions work on plain addresses; the programs move them from and to their context. */
#include "common.h"
#include "lb.h"

#define NSEC_PER_SEC 1000000000LL

LB_LRU(cilia_lb4_sk, struct sock4_key, struct sock4_value);
LB_LRU(cilia_lb6_sk, struct sock6_key, struct sock6_value);

/* Set before load; the verifier removes what they switch off. */
const volatile bool have_set_retval = false;		/* helper bpf_set_retval, Linux 5.18 */
const volatile __u64 host_netns_cookie = 0;		/* network namespace of the agent */

/* Verdicts of the forward direction. */
#define SOCK_PASS 0		/* not ours */
#define SOCK_TRANSLATED 1
#define SOCK_REFUSED 2		/* ours, and nobody serves it */

/* Protocols with frontends; MPTCP connects through a TCP frontend. 0 = never translated. */
static __always_inline __u8 sock_proto(const struct bpf_sock_addr *ctx)
{
	switch (ctx->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_MPTCP:
		return IPPROTO_TCP;
	case IPPROTO_UDP:
		return IPPROTO_UDP;
	default:
		return 0;
	}
}

/* Only a socket of the node itself reaches the node by loopback. */
static __always_inline bool sock_in_host_netns(struct bpf_sock_addr *ctx)
{
	return host_netns_cookie && bpf_get_netns_cookie(ctx) == host_netns_cookie;
}

static __always_inline bool ipv4_is_loopback(__be32 address)
{
	return (address & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

static __always_inline bool ipv6_is_loopback(const __be32 *address)
{
	return !address[0] && !address[1] && !address[2] && address[3] == bpf_htonl(1);
}

static __always_inline bool ipv6_is_any(const __be32 *address)
{
	return !(address[0] | address[1] | address[2] | address[3]);
}

/* Surrogates (address 0) stand for every address of the node: they are looked up when the node
 * dials itself by loopback, and never because someone dials the address 0. */
static __always_inline struct lb_service *sock4_service(struct bpf_sock_addr *ctx,
							struct lb4_key *key)
{
	struct lb_service *svc;

	if (!key->address)
		return NULL;
	svc = lb4_service(key);
	if (!svc && ipv4_is_loopback(key->address) && sock_in_host_netns(ctx)) {
		key->address = 0;
		svc = lb4_service(key);
	}
	return svc;
}

static __always_inline struct lb_service *sock6_service(struct bpf_sock_addr *ctx,
							struct lb6_key *key)
{
	struct lb_service *svc;

	if (ipv6_is_any(key->address))
		return NULL;
	svc = lb6_service(key);
	if (!svc && ipv6_is_loopback(key->address) && sock_in_host_netns(ctx)) {
		key->address[3] = 0;
		svc = lb6_service(key);
	}
	return svc;
}

/* The backend that this client has, if its time is not over and it still serves; else a random one,
 * which the client has from now on. */
static __always_inline struct lb4_backend *sock4_backend(struct bpf_sock_addr *ctx,
							   struct lb4_key *key,
							   const struct lb_service *svc)
{
	struct lb4_affinity_key client = { .rev_nat = svc->rev_nat, .is_netns = 1 };
	struct lb_affinity_match_key match = { .rev_nat = svc->rev_nat };
	struct lb_affinity chosen = { .last_used_ns = bpf_ktime_get_ns() };
	__s64 timeout_ns = svc->affinity_timeout_s * NSEC_PER_SEC;
	struct lb4_backend *backend;
	struct lb_affinity *held;
	__u32 backend_id = 0;

	if (!(svc->flags & LB_SVC_AFFINITY))
		return lb4_backend_random(key, svc, &backend_id);
	client.client = bpf_get_netns_cookie(ctx);
	held = bpf_map_lookup_elem(&cilia_lb4_aff, &client);
	if (held && (__s64)(chosen.last_used_ns - held->last_used_ns) <= timeout_ns) {
		match.backend_id = held->backend_id;
		backend = NULL;
		if (bpf_map_lookup_elem(&cilia_lb4_affm, &match))
			backend = bpf_map_lookup_elem(&cilia_lb4_be, &match.backend_id);
		if (backend) {
			held->last_used_ns = chosen.last_used_ns;
			return backend;
		}
	}
	backend = lb4_backend_random(key, svc, &backend_id);
	if (backend) {
		chosen.backend_id = backend_id;
		bpf_map_update_elem(&cilia_lb4_aff, &client, &chosen, BPF_ANY);
	}
	return backend;
}

/* The backend that this client has, if its time is not over and it still serves; else a random one,
 * which the client has from now on. */
static __always_inline struct lb6_backend *sock6_backend(struct bpf_sock_addr *ctx,
							   struct lb6_key *key,
							   const struct lb_service *svc)
{
	struct lb6_affinity_key client = { .rev_nat = svc->rev_nat, .is_netns = 1 };
	struct lb_affinity_match_key match = { .rev_nat = svc->rev_nat };
	struct lb_affinity chosen = { .last_used_ns = bpf_ktime_get_ns() };
	__s64 timeout_ns = svc->affinity_timeout_s * NSEC_PER_SEC;
	struct lb6_backend *backend;
	struct lb_affinity *held;
	__u32 backend_id = 0;

	if (!(svc->flags & LB_SVC_AFFINITY))
		return lb6_backend_random(key, svc, &backend_id);
	client.client[0] = bpf_get_netns_cookie(ctx);
	held = bpf_map_lookup_elem(&cilia_lb6_aff, &client);
	if (held && (__s64)(chosen.last_used_ns - held->last_used_ns) <= timeout_ns) {
		match.backend_id = held->backend_id;
		backend = NULL;
		if (bpf_map_lookup_elem(&cilia_lb6_affm, &match))
			backend = bpf_map_lookup_elem(&cilia_lb6_be, &match.backend_id);
		if (backend) {
			held->last_used_ns = chosen.last_used_ns;
			return backend;
		}
	}
	backend = lb6_backend_random(key, svc, &backend_id);
	if (backend) {
		chosen.backend_id = backend_id;
		bpf_map_update_elem(&cilia_lb6_aff, &client, &chosen, BPF_ANY);
	}
	return backend;
}

/* An unchanged entry is not written again: a socket that sends many datagrams to one backend
 * pays for a look-up only. */
static __always_inline int sock4_remember(struct sock4_key *key, const struct sock4_value *value)
{
	const struct sock4_value *old = bpf_map_lookup_elem(&cilia_lb4_sk, key);

	if (old && old->address == value->address && old->port == value->port &&
	    old->rev_nat == value->rev_nat)
		return 0;
	return bpf_map_update_elem(&cilia_lb4_sk, key, value, BPF_ANY);
}

static __always_inline int sock6_remember(struct sock6_key *key, const struct sock6_value *value)
{
	const struct sock6_value *old = bpf_map_lookup_elem(&cilia_lb6_sk, key);

	if (old && old->address[0] == value->address[0] && old->address[1] == value->address[1] &&
	    old->address[2] == value->address[2] && old->address[3] == value->address[3] &&
	    old->port == value->port && old->rev_nat == value->rev_nat)
		return 0;
	return bpf_map_update_elem(&cilia_lb6_sk, key, value, BPF_ANY);
}

/* Replace *address and *port by a backend's. Without an entry for the way back a UDP client
 * would see replies from a stranger, so then it is refused; TCP only loses getpeername. */
static __always_inline int sock4_forward(struct bpf_sock_addr *ctx, __be32 *address, __be16 *port)
{
	struct lb4_key key = { .address = *address, .dport = *port, .proto = sock_proto(ctx) };
	struct sock4_value back = { .address = *address, .port = *port };
	struct sock4_key way_back = {};
	struct lb4_backend *backend;
	struct lb_service *svc;

	if (!key.proto)
		return SOCK_PASS;
	svc = sock4_service(ctx, &key);
	if (!svc)
		return SOCK_PASS;
	backend = sock4_backend(ctx, &key, svc);
	if (!backend)
		return SOCK_REFUSED;
	back.rev_nat = svc->rev_nat;
	way_back.cookie = bpf_get_socket_cookie(ctx);
	way_back.address = backend->address;
	way_back.port = backend->port;
	if (sock4_remember(&way_back, &back) && key.proto == IPPROTO_UDP)
		return SOCK_REFUSED;
	*address = way_back.address;
	*port = way_back.port;
	return SOCK_TRANSLATED;
}

static __always_inline int sock6_forward(struct bpf_sock_addr *ctx, __be32 *address, __be16 *port)
{
	struct lb6_key key = { .dport = *port, .proto = sock_proto(ctx) };
	struct sock6_value back = { .port = *port };
	struct sock6_key way_back = {};
	struct lb6_backend *backend;
	struct lb_service *svc;

	__builtin_memcpy(key.address, address, sizeof(key.address));
	__builtin_memcpy(back.address, address, sizeof(back.address));
	if (!key.proto)
		return SOCK_PASS;
	svc = sock6_service(ctx, &key);
	if (!svc)
		return SOCK_PASS;
	backend = sock6_backend(ctx, &key, svc);
	if (!backend)
		return SOCK_REFUSED;
	back.rev_nat = svc->rev_nat;
	way_back.cookie = bpf_get_socket_cookie(ctx);
	__builtin_memcpy(way_back.address, backend->address, sizeof(way_back.address));
	way_back.port = backend->port;
	if (sock6_remember(&way_back, &back) && key.proto == IPPROTO_UDP)
		return SOCK_REFUSED;
	__builtin_memcpy(address, way_back.address, sizeof(way_back.address));
	*port = way_back.port;
	return SOCK_TRANSLATED;
}

/* Replace a backend's address and port by those that the socket dialled; false = not ours. */
static __always_inline bool sock4_reverse(struct bpf_sock_addr *ctx, __be32 *address, __be16 *port)
{
	struct sock4_key key = { .address = *address, .port = *port };
	const struct sock4_value *value;

	key.cookie = bpf_get_socket_cookie(ctx);
	value = bpf_map_lookup_elem(&cilia_lb4_sk, &key);
	if (!value)
		return false;
	*address = value->address;
	*port = value->port;
	return true;
}

static __always_inline bool sock6_reverse(struct bpf_sock_addr *ctx, __be32 *address, __be16 *port)
{
	struct sock6_key key = { .port = *port };
	const struct sock6_value *value;

	__builtin_memcpy(key.address, address, sizeof(key.address));
	key.cookie = bpf_get_socket_cookie(ctx);
	value = bpf_map_lookup_elem(&cilia_lb6_sk, &key);
	if (!value)
		return false;
	__builtin_memcpy(address, value->address, sizeof(value->address));
	*port = value->port;
	return true;
}

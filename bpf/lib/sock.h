/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Translation at the socket: the address that an application dials becomes a backend's before a
 * packet exists, and the backend's address becomes the service's again where the application
 * reads it. The functions work on plain addresses; the programs move them from and to their context. */
#include "cluster_nodes.h"
#include "common.h"
#include "drop_types.h"
#include "event_types.h"
#include "lb.h"
#include "redirect_skips.h"
#include "metrics.h"
#include "sock_affinity.h"
#include "switch.h"

LB_LRU(cilia_lb4_sk, struct sock4_key, struct sock4_value);
LB_LRU(cilia_lb6_sk, struct sock6_key, struct sock6_value);

/* Set before load; the verifier removes what they switch off. */
const volatile bool have_set_retval = false;		/* helper bpf_set_retval, Linux 5.18 */
const volatile __u64 host_netns_cookie = 0;		/* network namespace of the agent */
const volatile bool sock_host_only = false;		/* pods are left to the programs of packets */
const volatile bool wildcard_entries = false;		/* ports that a service lacks are refused */
const volatile __s32 no_backend_error = -CILIA_ECONNREFUSED;

/* Verdicts of the forward direction; a negative one is ours, refused with this errno. */
#define SOCK_PASS 0		/* not ours */
#define SOCK_TRANSLATED 1

/* What goes to a proxy or to the other address family is translated as a packet. */
#define LB_SVC_FOR_PACKETS (LB_SVC_L7 | LB_SVC_46X64)

/* Counts like a dropped packet; there is none, so it has no bytes. */
static __always_inline int sock_refused_at(__u16 line, __s16 reason, int error)
{
	struct metrics_key key = {
		.reason = reason,
		.line = line,
		.file = FILE_SOCK_H,
		.direction = DIRECTION_EGRESS,
	};

	metrics_count(&key, 0);
	return error;
}

#define sock_refused(reason, error) sock_refused_at(__LINE__, reason, error)

/* Protocols with frontends; MPTCP connects through a TCP frontend. 0 = never translated. */
static __always_inline __u8 sock_proto(__u32 protocol)
{
	switch (protocol) {
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
static __always_inline bool sock_in_host_netns(void *ctx)
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

static __always_inline bool ipv6_is_mapped(const __be32 *address)
{
	return !address[0] && !address[1] && address[2] == bpf_htonl(0xffff);
}

/* A node port of another node that is served here. Where only the backends of the node that is asked
 * serve, that one is left to choose; its host ports are its own. */
static __always_inline bool sock_serves_elsewhere(const struct lb_service *svc)
{
	return svc && svc->type == LB_TYPE_NODE_PORT && !(svc->flags & LB_SVC_EXT_LOCAL);
}

/* Surrogates (address 0) stand for every address of every node: they are looked up when the node dials
 * itself by loopback, when someone dials another node, whose backend may be here and would answer past
 * it, and never because someone dials the address 0. A host port that is for the node alone is found by
 * loopback alone. */
static __always_inline struct lb_service *sock4_service(struct bpf_sock_addr *ctx,
							struct lb4_key *key)
{
	struct lb_service *svc;

	if (!key->address)
		return NULL;
	svc = lb4_service(key);
	if (svc && !(svc->flags & LB_SVC_LOOPBACK))
		return svc;
	if (ipv4_is_loopback(key->address)) {
		if (!sock_in_host_netns(ctx))
			return NULL;
		key->address = 0;
		return lb4_service(key);
	}
	if (!cluster_node_is_other(&key->address, false))
		return NULL;
	key->address = 0;
	svc = lb4_service(key);
	return sock_serves_elsewhere(svc) ? svc : NULL;
}

static __always_inline struct lb_service *sock6_service(struct bpf_sock_addr *ctx,
							struct lb6_key *key)
{
	struct lb_service *svc;

	if (ipv6_is_any(key->address))
		return NULL;
	svc = lb6_service(key);
	if (svc && !(svc->flags & LB_SVC_LOOPBACK))
		return svc;
	if (ipv6_is_loopback(key->address)) {
		if (!sock_in_host_netns(ctx))
			return NULL;
		key->address[3] = 0;
		return lb6_service(key);
	}
	if (!cluster_node_is_other(key->address, true))
		return NULL;
	__builtin_memset(key->address, 0, sizeof(key->address));
	svc = lb6_service(key);
	return sock_serves_elsewhere(svc) ? svc : NULL;
}

/* Whether source ranges decide about this client: SOCK_PASS if its packets do, which have a source
 * when a socket has none yet, as a pod's; a refusal; SOCK_TRANSLATED if nothing stands in the way. The
 * node itself is let in or not by what the agent found for its addresses. */
static __always_inline int sock_source_verdict(struct bpf_sock_addr *ctx,
					       const struct lb_service *svc)
{
	if (!(svc->flags & LB_SVC_SOURCE_INSIDE))
		return SOCK_TRANSLATED;
	if (!sock_in_host_netns(ctx))
		return SOCK_PASS;
	if (svc->flags & LB_SVC_SOURCE_NOT_NODE)
		return sock_refused(DROP_NOT_IN_SRC_RANGE, no_backend_error);
	return SOCK_TRANSLATED;
}

/* Whether an address that has no such port belongs to a service all the same. */
static __always_inline bool sock4_is_vip(__be32 address)
{
	struct lb4_key key = { .address = address };

	return wildcard_entries && bpf_map_lookup_elem(&cilia_lb4_svc, &key);
}

static __always_inline bool sock6_is_vip(const __be32 *address)
{
	struct lb6_key key = {};

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return wildcard_entries && bpf_map_lookup_elem(&cilia_lb6_svc, &key);
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

/* Replace *address and *port by a backend's. What nobody serves is refused here: it would leave the
 * node as it is, and come back in a loop. Without an entry for the way back a UDP client would see
 * replies from a stranger, so then it is refused too; TCP only loses getpeername. connects: the socket
 * keeps this peer, and counts as a connection. */
static __always_inline int sock4_forward(struct bpf_sock_addr *ctx, __be32 *address, __be16 *port,
					const bool connects)
{
	struct lb4_key key = { .address = *address, .dport = *port, .proto = sock_proto(ctx->protocol) };
	struct sock4_value back = { .address = *address, .port = *port };
	struct sock4_key way_back = {};
	struct lb4_backend *backend;
	struct lb_service *svc;
	__u32 backend_id = 0;
	int verdict;

	if (!key.proto || (sock_host_only && !sock_in_host_netns(ctx)))
		return SOCK_PASS;
	svc = sock4_service(ctx, &key);
	if ((!svc && !sock4_is_vip(*address)) || switch_hands_back())
		return SOCK_PASS;
	if (!svc)
		return sock_refused(DROP_NO_SERVICE, no_backend_error);
	if (svc->flags & LB_SVC_FOR_PACKETS)
		return SOCK_PASS;
	if (redirect4_skips(svc, bpf_get_netns_cookie(ctx), *address, *port))
		return SOCK_PASS;
	verdict = sock_source_verdict(ctx, svc);
	if (verdict != SOCK_TRANSLATED)
		return verdict;
	backend = sock4_backend(ctx, &key, svc, &backend_id);
	if (!backend)
		return sock_refused(DROP_NO_BACKEND, no_backend_error);
	back.rev_nat = svc->rev_nat;
	way_back.cookie = bpf_get_socket_cookie(ctx);
	way_back.address = backend->address;
	way_back.port = backend->port;
	if (sock4_remember(&way_back, &back) && key.proto == IPPROTO_UDP)
		return sock_refused(DROP_MAP_FULL, -CILIA_ENOMEM);
	if (connects && lb_wants_least(svc))
		lb_count_begin(ctx, backend_id, false);
	*address = way_back.address;
	*port = way_back.port;
	return SOCK_TRANSLATED;
}

static __always_inline int sock6_forward(struct bpf_sock_addr *ctx, __be32 *address, __be16 *port,
					const bool connects)
{
	struct lb6_key key = { .dport = *port, .proto = sock_proto(ctx->protocol) };
	struct sock6_value back = { .port = *port };
	struct sock6_key way_back = {};
	struct lb6_backend *backend;
	struct lb_service *svc;
	__u32 backend_id = 0;
	int verdict;

	__builtin_memcpy(key.address, address, sizeof(key.address));
	__builtin_memcpy(back.address, address, sizeof(back.address));
	if (!key.proto || (sock_host_only && !sock_in_host_netns(ctx)))
		return SOCK_PASS;
	svc = sock6_service(ctx, &key);
	if ((!svc && !sock6_is_vip(address)) || switch_hands_back())
		return SOCK_PASS;
	if (!svc)
		return sock_refused(DROP_NO_SERVICE, no_backend_error);
	if (svc->flags & LB_SVC_FOR_PACKETS)
		return SOCK_PASS;
	if (redirect6_skips(svc, bpf_get_netns_cookie(ctx), address, *port))
		return SOCK_PASS;
	verdict = sock_source_verdict(ctx, svc);
	if (verdict != SOCK_TRANSLATED)
		return verdict;
	backend = sock6_backend(ctx, &key, svc, &backend_id);
	if (!backend)
		return sock_refused(DROP_NO_BACKEND, no_backend_error);
	back.rev_nat = svc->rev_nat;
	way_back.cookie = bpf_get_socket_cookie(ctx);
	__builtin_memcpy(way_back.address, backend->address, sizeof(way_back.address));
	way_back.port = backend->port;
	if (sock6_remember(&way_back, &back) && key.proto == IPPROTO_UDP)
		return sock_refused(DROP_MAP_FULL, -CILIA_ENOMEM);
	if (connects && lb_wants_least(svc))
		lb_count_begin(ctx, backend_id, true);
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

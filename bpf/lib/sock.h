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

static __always_inline bool address_is_any(const __be32 *address, const bool v6)
{
	return !(v6 ? address[0] | address[1] | address[2] | address[3] : address[0]);
}

static __always_inline bool address_is_loopback(const __be32 *address, const bool v6)
{
	if (v6)
		return !(address[0] | address[1] | address[2]) && address[3] == bpf_htonl(1);
	return (address[0] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
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
static __always_inline struct lb_service *sock_service(struct bpf_sock_addr *ctx, union lb_key *key,
						       const __be32 *address, const bool v6)
{
	struct lb_service *svc;

	if (address_is_any(address, v6))
		return NULL;
	svc = lb_service(key, v6);
	if (svc && !(svc->flags & LB_SVC_LOOPBACK))
		return svc;
	if (address_is_loopback(address, v6)) {
		if (!sock_in_host_netns(ctx))
			return NULL;
		lb_key_any_address(key, v6);
		return lb_service(key, v6);
	}
	if (!cluster_node_is_other(address, v6))
		return NULL;
	lb_key_any_address(key, v6);
	svc = lb_service(key, v6);
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
static __always_inline bool sock_is_vip(const __be32 *address, const bool v6)
{
	union lb_key wildcard;

	lb_key_of(&wildcard, address, 0, 0, v6);
	return wildcard_entries && lb_entry(&wildcard, v6);
}

/* A socket's peer, and the frontend that it stands for. */
union sock_key {
	struct sock4_key v4;
	struct sock6_key v6;
};

union sock_value {
	struct sock4_value v4;
	struct sock6_value v6;
};

static __always_inline void sock_key_of(union sock_key *key, __u64 cookie, const __be32 *address,
					__be16 port, const bool v6)
{
	__builtin_memset(key, 0, sizeof(*key));
	if (v6) {
		key->v6.cookie = cookie;
		address_copy(key->v6.address, address, true);
		key->v6.port = port;
	} else {
		key->v4.cookie = cookie;
		key->v4.address = *address;
		key->v4.port = port;
	}
}

static __always_inline void *sock_entry(const union sock_key *key, const bool v6)
{
	if (v6)
		return bpf_map_lookup_elem(&cilia_lb6_sk, &key->v6);
	return bpf_map_lookup_elem(&cilia_lb4_sk, &key->v4);
}

static __always_inline bool sock_value_equal(const union sock_value *one, const union sock_value *other,
					     const bool v6)
{
	if (v6)
		return address_equal(one->v6.address, other->v6.address, true) &&
		       one->v6.port == other->v6.port && one->v6.rev_nat == other->v6.rev_nat;
	return one->v4.address == other->v4.address && one->v4.port == other->v4.port &&
	       one->v4.rev_nat == other->v4.rev_nat;
}

/* Remember for the way back which frontend the application dialled: 0, or an error. An unchanged entry is
 * not written again: a socket that sends many datagrams to one backend pays for a look-up only. */
static __always_inline int sock_remember(const union sock_key *key, const __be32 *address, __be16 port,
					 __u32 rev_nat, const bool v6)
{
	const union sock_value *old = sock_entry(key, v6);
	union sock_value value = {};

	if (v6) {
		address_copy(value.v6.address, address, true);
		value.v6.port = port;
		value.v6.rev_nat = rev_nat;
	} else {
		value.v4.address = *address;
		value.v4.port = port;
		value.v4.rev_nat = rev_nat;
	}
	if (old && sock_value_equal(old, &value, v6))
		return 0;
	if (v6)
		return bpf_map_update_elem(&cilia_lb6_sk, &key->v6, &value.v6, BPF_ANY);
	return bpf_map_update_elem(&cilia_lb4_sk, &key->v4, &value.v4, BPF_ANY);
}

/* Replace *address and *port by a backend's. What nobody serves is refused here: it would leave the
 * node as it is, and come back in a loop. Without an entry for the way back a UDP client would see
 * replies from a stranger, so then it is refused too; TCP only loses getpeername. connects: the socket
 * keeps this peer, and counts as a connection. */
static __always_inline int sock_forward(struct bpf_sock_addr *ctx, __be32 *address, __be16 *port,
					const bool connects, const bool v6)
{
	__u8 proto = sock_proto(ctx->protocol);
	struct lb_target target = {};
	union sock_key way_back;
	struct lb_service *svc;
	union lb_key key;
	int verdict;

	if (!proto || (sock_host_only && !sock_in_host_netns(ctx)))
		return SOCK_PASS;
	lb_key_of(&key, address, *port, proto, v6);
	svc = sock_service(ctx, &key, address, v6);
	if ((!svc && !sock_is_vip(address, v6)) || switch_hands_back())
		return SOCK_PASS;
	if (!svc)
		return sock_refused(DROP_NO_SERVICE, no_backend_error);
	if (svc->flags & LB_SVC_FOR_PACKETS)
		return SOCK_PASS;
	if (redirect_skips_socket(ctx, svc, address, *port, v6))
		return SOCK_PASS;
	verdict = sock_source_verdict(ctx, svc);
	if (verdict != SOCK_TRANSLATED)
		return verdict;
	if (!sock_choose(ctx, &target, &key, svc, v6))
		return sock_refused(DROP_NO_BACKEND, no_backend_error);
	sock_key_of(&way_back, bpf_get_socket_cookie(ctx), target.address, target.port, v6);
	/* Read again: the verifier would look at all of this once a protocol. */
	if (sock_remember(&way_back, address, *port, svc->rev_nat, v6) && ctx->protocol == IPPROTO_UDP)
		return sock_refused(DROP_MAP_FULL, -CILIA_ENOMEM);
	if (connects && lb_wants_least(svc))
		lb_count_begin(ctx, target.id, v6);
	address_copy(address, target.address, v6);
	*port = target.port;
	return SOCK_TRANSLATED;
}

/* Replace a backend's address and port by those that the socket dialled; false = not ours. */
static __always_inline bool sock_reverse(struct bpf_sock_addr *ctx, __be32 *address, __be16 *port,
					 const bool v6)
{
	const union sock_value *frontend;
	union sock_key key;

	sock_key_of(&key, bpf_get_socket_cookie(ctx), address, *port, v6);
	frontend = sock_entry(&key, v6);
	if (!frontend)
		return false;
	if (v6) {
		address_copy(address, frontend->v6.address, true);
		*port = frontend->v6.port;
	} else {
		*address = frontend->v4.address;
		*port = frontend->v4.port;
	}
	return true;
}

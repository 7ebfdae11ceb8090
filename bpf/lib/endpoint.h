/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Workloads whose network is ours: nobody sends in another one's name.
 *
 * A frame is looked at before anything else. Its Ethernet source is the workload's device, its IP source an
 * address of the workload. Of IPv6 there are also link-local addresses, which go no further than the node's
 * end of the pair, and the unspecified one, which asks whether an address is free. The sender of ARP is
 * held to the same. Other protocols have no source that could be verified.
 */
#include "neighbor.h"
#include "drop.h"
#include "endpoint_place.h"

static __always_inline bool endpoint_has_mac(const struct endpoint *endpoint, const __u8 *mac)
{
	return !__builtin_memcmp(endpoint->mac, mac, ETH_ALEN);
}

#define ENDPOINT_ANSWERED 1	/* the frame has become an answer to the workload */

/* An address of nobody asks whether the one that it will have is free (RFC 5227). */
static __always_inline int endpoint_verify_arp(ctx_t *ctx, const struct endpoint *endpoint)
{
	struct arp4 arp;
	__be32 sender;

	if (ctx_load_bytes(ctx, ETH_HLEN, &arp, sizeof(arp)))
		return REFUSE(DROP_INVALID_PACKET);
	if (!endpoint_has_mac(endpoint, arp.sender_mac))
		return REFUSE(DROP_INVALID_SOURCE_MAC);
	__builtin_memcpy(&sender, arp.sender, sizeof(sender));
	if (sender && sender != endpoint->address4)
		return REFUSE(DROP_INVALID_SOURCE);
	if (endpoint->flags & ENDPOINT_CHAINED)
		return 0;
	return neighbor_answer_arp(ctx, endpoint, &arp) ? ENDPOINT_ANSWERED : 0;
}

/* The node's own services on 127.0.0.0/8 are reached from outside where route_localnet is on, which kube-proxy
 * sets. */
static __always_inline int endpoint_verify4(ctx_t *ctx, const struct endpoint *endpoint)
{
	struct {
		__be32 source;
		__be32 destination;
	} ip;

	if (ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), &ip, sizeof(ip)))
		return REFUSE(DROP_INVALID_PACKET);
	if (!ip.source || ip.source != endpoint->address4)
		return REFUSE(DROP_INVALID_SOURCE);
	if ((bpf_ntohl(ip.destination) >> 24) == 127)
		return REFUSE(DROP_NODE_LOOPBACK);
	return 0;
}

/* A workload is no router: what only routers say would change the node's own routes where it listens. */
static __always_inline bool endpoint_plays_router(ctx_t *ctx)
{
	__u8 next, type;

	if (ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, nexthdr), &next,
			   sizeof(next)) ||
	    next != IPPROTO_ICMPV6 ||
	    ctx_load_bytes(ctx, ETH_HLEN + sizeof(struct ipv6hdr), &type, sizeof(type)))
		return false;
	return type == ND_ROUTER_ADVERTISEMENT || type == ND_REDIRECT;
}

static __always_inline int endpoint_verify6(ctx_t *ctx, const struct endpoint *endpoint)
{
	struct {
		__be32 source[4];
		__be32 destination[4];
	} ip;

	if (ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), &ip, sizeof(ip)))
		return REFUSE(DROP_INVALID_PACKET);
	if (is_unspecified6(ip.source))
		return is_multicast6(ip.destination) ? 0 : REFUSE(DROP_INVALID_SOURCE);
	if (is_link_local6(ip.source)) {
		if (!is_link_local6(ip.destination) && !is_multicast6(ip.destination))
			return REFUSE(DROP_INVALID_SOURCE);
	} else if (!address_equal(ip.source, endpoint->address6, true)) {
		return REFUSE(DROP_INVALID_SOURCE);
	}
	if (endpoint_plays_router(ctx))
		return REFUSE(DROP_FORBIDDEN_ICMP6);
	if (endpoint->flags & ENDPOINT_CHAINED)
		return 0;
	return neighbor_answer_nd(ctx, endpoint) ? ENDPOINT_ANSWERED : 0;
}

/* Whether the workload of this device may send the frame: 0, ENDPOINT_ANSWERED or a refusal. A device whose
 * workload is not known sends nothing. */
static __noinline __attribute__((unused)) int endpoint_verify(ctx_t *ctx, const struct endpoint *endpoint)
{
	struct ethhdr eth;

	if (!endpoint)
		return REFUSE(DROP_ENDPOINT_NOT_READY);
	if (ctx_load_bytes(ctx, 0, &eth, sizeof(eth)))
		return REFUSE(DROP_INVALID_PACKET);
	if (!endpoint_has_mac(endpoint, eth.h_source))
		return REFUSE(DROP_INVALID_SOURCE_MAC);
	switch (ctx_protocol(ctx)) {
	case bpf_htons(ETH_P_IP):
		return endpoint_verify4(ctx, endpoint);
	case bpf_htons(ETH_P_IPV6):
		return endpoint_verify6(ctx, endpoint);
	case bpf_htons(ETH_P_ARP):
		return endpoint_verify_arp(ctx, endpoint);
	default:
		return REFUSE(DROP_UNKNOWN_L3);
	}
}

/* Whether a device that belongs to none of our workloads may send the frame: not in the name of one of them.
 * Another plugin answers for its own. 0 or a refusal. */
static __noinline __attribute__((unused)) int endpoint_of_others(ctx_t *ctx)
{
	struct arp4 arp;
	__be32 source[4] = {};
	int cut;

	switch (ctx_protocol(ctx)) {
	case bpf_htons(ETH_P_IP):
		cut = ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), source,
				     sizeof(source[0]));
		break;
	case bpf_htons(ETH_P_IPV6):
		cut = ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), source,
				     sizeof(source));
		break;
	case bpf_htons(ETH_P_ARP):
		cut = ctx_load_bytes(ctx, ETH_HLEN, &arp, sizeof(arp));
		__builtin_memcpy(source, arp.sender, sizeof(source[0]));
		break;
	default:
		return 0;
	}
	if (cut)
		return REFUSE(DROP_INVALID_PACKET);
	return endpoint_at(source, ctx_protocol(ctx) == bpf_htons(ETH_P_IPV6)) ?
		       REFUSE(DROP_INVALID_SOURCE) : 0;
}

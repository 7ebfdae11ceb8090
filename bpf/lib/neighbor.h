/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* ARP (RFC 826) and neighbour discovery (RFC 4861) of a workload: all addresses but its own are behind the
 * node's end of its pair, so the node's end is the answer to each question, and no setting of the node's
 * network can keep it away. Link-local addresses are left to the stack: there the node's end has one.
 */
#include "csum.h"
#include "endpoint_types.h"
#include "tuple.h"
#include <linux/ip.h>
#include <linux/ipv6.h>

#define ARP_REQUEST 1
#define ARP_REPLY 2

#define ND_ROUTER_SOLICITATION 133
#define ND_ROUTER_ADVERTISEMENT 134
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_REDIRECT 137
#define ND_TARGET_MAC 2			/* option, its length counts 8 bytes */
#define ND_FLAGS 0xe0000000		/* router, solicited, override */
#define ND_HOP_LIMIT 255

/* For IPv4 over Ethernet. */
struct arp4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_bytes;
	__u8 protocol_bytes;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target[4];
};

struct nd_message {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	__be32 target[4];
	__u8 option;
	__u8 option_length;
	__u8 mac[ETH_ALEN];
};

struct nd_packet {
	struct ipv6hdr ip;
	struct nd_message nd;
};

static __always_inline bool is_multicast6(const __be32 *address)
{
	return (bpf_ntohl(address[0]) >> 24) == 0xff;
}

static __always_inline bool is_link_local6(const __be32 *address)
{
	return (bpf_ntohl(address[0]) >> 22) == 0x3fa;
}

static __always_inline bool is_unspecified6(const __be32 *address)
{
	return !(address[0] | address[1] | address[2] | address[3]);
}

/* From the node's end to the workload. */
static __always_inline int neighbor_turn(ctx_t *ctx, const struct endpoint *endpoint)
{
	if (ctx_store_bytes(ctx, 0, endpoint->mac, ETH_ALEN))
		return -1;
	return ctx_store_bytes(ctx, ETH_ALEN, endpoint->node_mac, ETH_ALEN);
}

/* Whether the frame has become the answer. arp: what it has, from its workload. */
static __always_inline bool neighbor_answer_arp(ctx_t *ctx, const struct endpoint *endpoint,
						struct arp4 *arp)
{
	__u8 target[4];
	__be32 asked, asker;

	__builtin_memcpy(&asked, arp->target, sizeof(asked));
	__builtin_memcpy(&asker, arp->sender, sizeof(asker));
	if (arp->operation != bpf_htons(ARP_REQUEST) || !asker || asked == endpoint->address4)
		return false;
	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(target, arp->target, sizeof(target));
	__builtin_memcpy(arp->target, arp->sender, sizeof(target));
	__builtin_memcpy(arp->sender, target, sizeof(target));
	__builtin_memcpy(arp->target_mac, endpoint->mac, ETH_ALEN);
	__builtin_memcpy(arp->sender_mac, endpoint->node_mac, ETH_ALEN);
	return !ctx_store_bytes(ctx, ETH_HLEN, arp, sizeof(*arp)) && !neighbor_turn(ctx, endpoint);
}

static __always_inline __u16 nd_checksum(const struct nd_packet *packet)
{
	__be32 pseudo[2] = { bpf_htonl(sizeof(packet->nd)), bpf_htonl(IPPROTO_ICMPV6) };
	__s64 sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);

	/* Both addresses, then the message behind them. */
	sum = bpf_csum_diff(0, 0, (__be32 *)&packet->ip.saddr,
			    2 * sizeof(packet->ip.saddr) + sizeof(packet->nd), (__u32)sum);
	return csum_fold((__u32)sum);
}

/* Whether the frame, IPv6 from its workload, has become the answer. A question from nobody asks whether an
 * address is free, which is not ours to say. */
static __noinline bool neighbor_answer_nd(ctx_t *ctx, const struct endpoint *endpoint)
{
	struct nd_packet packet;

	if (ctx_load_bytes(ctx, ETH_HLEN, &packet, __builtin_offsetof(struct nd_packet, nd.option)))
		return false;
	if (packet.ip.nexthdr != IPPROTO_ICMPV6 || packet.ip.hop_limit != ND_HOP_LIMIT ||
	    packet.nd.type != ND_SOLICITATION || packet.nd.code)
		return false;
	if (is_unspecified6((__be32 *)&packet.ip.saddr) || is_link_local6(packet.nd.target) ||
	    is_multicast6(packet.nd.target))
		return false;
	if (address_equal(packet.nd.target, endpoint->address6, true))
		return false;
	packet.ip.daddr = packet.ip.saddr;
	__builtin_memcpy(&packet.ip.saddr, packet.nd.target, sizeof(packet.ip.saddr));
	packet.ip.payload_len = bpf_htons(sizeof(packet.nd));
	packet.nd.type = ND_ADVERTISEMENT;
	packet.nd.flags = bpf_htonl(ND_FLAGS);
	packet.nd.option = ND_TARGET_MAC;
	packet.nd.option_length = 1;
	__builtin_memcpy(packet.nd.mac, endpoint->node_mac, ETH_ALEN);
	packet.nd.checksum = 0;
	packet.nd.checksum = nd_checksum(&packet);
	if (ctx_length(ctx) != ETH_HLEN + sizeof(packet) &&
	    ctx_change_tail(ctx, ETH_HLEN + sizeof(packet)))
		return false;
	return !ctx_store_bytes(ctx, ETH_HLEN, &packet, sizeof(packet)) &&
	       !neighbor_turn(ctx, endpoint);
}

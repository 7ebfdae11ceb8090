/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* IP in IP of the same family (RFC 2003, RFC 2473) without a tunnel device: headers put on and taken
 * off by the programs. */
#include "packet.h"
#include "rewrite.h"

#define IPIP_TTL 64

/* Bytes that a packet grows by. */
static __always_inline __u16 ipip_growth(const bool v6)
{
	return v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

#ifdef CILIA_XDP
static __always_inline int ipip_room(ctx_t *ctx, const bool v6)
{
	struct ethhdr eth;

	if (ctx_load_bytes(ctx, 0, &eth, sizeof(eth)) || ctx_change_head(ctx, ipip_growth(v6)))
		return -1;
	return ctx_store_bytes(ctx, 0, &eth, sizeof(eth));
}

static __always_inline int ipip_cut(ctx_t *ctx, __u32 size)
{
	struct ethhdr eth;

	if (ctx_load_bytes(ctx, 0, &eth, sizeof(eth)) || ctx_change_head(ctx, -(__s32)size))
		return -1;
	return ctx_store_bytes(ctx, 0, &eth, sizeof(eth));
}
#else
static __always_inline int ipip_room(ctx_t *ctx, const bool v6)
{
	return bpf_skb_adjust_room(ctx, ipip_growth(v6), BPF_ADJ_ROOM_MAC,
				   v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
}

static __always_inline int ipip_cut(ctx_t *ctx, __u32 size)
{
	return bpf_skb_adjust_room(ctx, -(__s32)size, BPF_ADJ_ROOM_MAC, 0);
}
#endif

static __always_inline int ipip4_wrap(ctx_t *ctx, const struct packet *packet, __be32 source,
				      __be32 destination)
{
	struct iphdr ip = {
		.version = 4,
		.ihl = sizeof(ip) / 4,
		.ttl = IPIP_TTL,
		.protocol = IPPROTO_IPIP,
		.frag_off = bpf_htons(0x4000),
		.saddr = source,
		.daddr = destination,
	};
	struct iphdr inner;

	if (ctx_load_bytes(ctx, packet->l3, &inner, sizeof(inner)))
		return REFUSE(DROP_INVALID_PACKET);
	ip.tos = inner.tos;
	ip.tot_len = bpf_htons(bpf_ntohs(inner.tot_len) + sizeof(ip));
	ip.check = csum_fold(bpf_csum_diff(NULL, 0, (void *)&ip, sizeof(ip), 0));
	if (ipip_room(ctx, false) || ctx_store_bytes(ctx, packet->l3, &ip, sizeof(ip)))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

static __always_inline int ipip6_wrap(ctx_t *ctx, const struct packet *packet,
				      const __be32 *source, const __be32 *destination)
{
	struct ipv6hdr ip = { .nexthdr = IPPROTO_IPV6, .hop_limit = IPIP_TTL };
	struct ipv6hdr inner;

	if (ctx_load_bytes(ctx, packet->l3, &inner, sizeof(inner)))
		return REFUSE(DROP_INVALID_PACKET);
	ip.version = 6;
	ip.priority = inner.priority;
	ip.flow_lbl[0] = inner.flow_lbl[0] & 0xf0;	/* the rest of the traffic class */
	ip.payload_len = bpf_htons(bpf_ntohs(inner.payload_len) + sizeof(inner));
	__builtin_memcpy(&ip.saddr, source, sizeof(ip.saddr));
	__builtin_memcpy(&ip.daddr, destination, sizeof(ip.daddr));
	if (ipip_room(ctx, true) || ctx_store_bytes(ctx, packet->l3, &ip, sizeof(ip)))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

/* Put the packet into another one; 0 or a refusal. */
static __always_inline int ipip_wrap(ctx_t *ctx, const struct packet *packet, const __be32 *source,
				     const __be32 *destination, const bool v6)
{
	return v6 ? ipip6_wrap(ctx, packet, source, destination) :
		    ipip4_wrap(ctx, packet, *source, *destination);
}

/* Whether the packet, which was PACKET_OTHER, carries one of its own family; inner is that one. */
static __always_inline bool ipip_inner(ctx_t *ctx, const struct packet *packet,
				       struct packet *inner, const bool v6)
{
	if (packet->tuple.proto != (v6 ? IPPROTO_IPV6 : IPPROTO_IPIP) ||
	    (packet->flags & PACKET_FRAGMENT))
		return false;
	__builtin_memset(inner, 0, sizeof(*inner));
	inner->l3 = packet->l4;
	return !(v6 ? packet_parse6(ctx, inner) : packet_parse4(ctx, inner));
}

/* Take the outer header off; offsets in the inner packet move. 0 or a refusal. */
static __always_inline int ipip_unwrap(ctx_t *ctx, const struct packet *packet,
				       struct packet *inner)
{
	__u16 size = packet->l4 - packet->l3;

	if (ipip_cut(ctx, size))
		return REFUSE(DROP_WRITE_ERROR);
	inner->l3 -= size;
	inner->l4 -= size;
	inner->inner_l3 -= size;	/* means something in ICMP errors only */
	inner->inner_l4 -= size;
	if (inner->sport_at)
		inner->sport_at -= size;
	if (inner->dport_at)
		inner->dport_at -= size;
	return 0;
}

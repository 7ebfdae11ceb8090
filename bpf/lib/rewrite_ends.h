/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* A packet on its way through the node: source, destination and hop count change together, so the bytes
 * are written once, and each checksum is corrected once for all addresses and once for both ports (a
 * checksum that is left to the device covers addresses only). What is not plain goes by rewrite.h. */
#include "rewrite.h"

/* Both ends of a packet. */
struct packet_ends {
	struct address source;
	struct address destination;
	__be16 sport;
	__be16 dport;
};

/* The parts of the headers that change when a packet is sent on with other ends: they are next to each
 * other but for IP options and extension headers, and so are written at once. */
struct ends4_bytes {
	__u8 ttl;
	__u8 proto;
	__be16 check;
	__be32 saddr;
	__be32 daddr;
	__be16 ports[2];
};

struct ends6_bytes {
	__u8 pad[7];
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 ports[2];
};

#define ENDS4_AT IP4_TTL
#define ENDS6_AT IP6_HOP_LIMIT

static __always_inline __u64 csum_add_change(__u64 sum, __u32 from, __u32 to)
{
	return sum + (__u32)~from + to;
}

static __always_inline __s64 csum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline int ends4_write(ctx_t *ctx, const struct packet *packet,
				       const struct packet_ends *ends, __s64 diff)
{
	struct ends4_bytes new = {
		.ttl = packet->ttl - 1,
		.proto = packet->tuple.proto,
		.saddr = ends->source.word[0],
		.daddr = ends->destination.word[0],
		.ports = { ends->sport, ends->dport },
	};
	const __u32 whole = sizeof(new), without_ports = whole - sizeof(new.ports);
	__u64 sum = (__u32)diff;

	if (ctx_load_bytes(ctx, packet->l3 + IP4_CSUM, &new.check, sizeof(new.check)))
		return REFUSE(DROP_CSUM_L3);
	sum = csum_add_change(sum, bpf_htons(packet->ttl << 8), bpf_htons(new.ttl << 8));
	/* The difference may be above 32 bits by one: folded as a whole. */
	new.check = csum_fold((__u64)(__u16)~new.check + sum);
	if (packet->l4 == packet->l3 + ENDS4_AT + without_ports)
		return ctx_store_bytes(ctx, packet->l3 + ENDS4_AT, &new, whole) ?
			       REFUSE(DROP_WRITE_ERROR) : 0;
	if (ctx_store_bytes(ctx, packet->l3 + ENDS4_AT, &new, without_ports) ||
	    ctx_store_bytes(ctx, packet->l4, new.ports, sizeof(new.ports)))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

static __always_inline int ends6_write(ctx_t *ctx, const struct packet *packet,
				       const struct packet_ends *ends)
{
	struct ends6_bytes new = {
		.hop_limit = packet->ttl - 1,
		.ports = { ends->sport, ends->dport },
	};
	const __u32 whole = sizeof(new) - sizeof(new.pad), without_ports = whole - sizeof(new.ports);

	address_copy(new.saddr, ends->source.word, true);
	address_copy(new.daddr, ends->destination.word, true);
	if (packet->l4 == packet->l3 + ENDS6_AT + without_ports)
		return ctx_store_bytes(ctx, packet->l3 + ENDS6_AT, &new.hop_limit, whole) ?
			       REFUSE(DROP_WRITE_ERROR) : 0;
	if (ctx_store_bytes(ctx, packet->l3 + ENDS6_AT, &new.hop_limit, without_ports) ||
	    ctx_store_bytes(ctx, packet->l4, new.ports, sizeof(new.ports)))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

/* TCP and UDP with both ports in the packet: all of it with one difference a checksum. */
static __always_inline int forward_plain(ctx_t *ctx, struct packet *packet,
					 const struct packet_ends *ends, const bool v6)
{
	struct tuple *tuple = &packet->tuple;
	__u32 at = packet->l4 + csum_offset(tuple->proto);
	__u64 addresses = 0, ports = 0;
	__s64 diff;
	int refused;

	for (int i = 0; i < (v6 ? 4 : 1); i++) {
		addresses = csum_add_change(addresses, tuple->saddr[i], ends->source.word[i]);
		addresses = csum_add_change(addresses, tuple->daddr[i], ends->destination.word[i]);
	}
	ports = csum_add_change(ports, tuple->sport, ends->sport);
	ports = csum_add_change(ports, tuple->dport, ends->dport);
	diff = csum_fold32(addresses);
	if (ctx_l4_csum_diff(ctx, at, diff, CSUM_PSEUDO | csum_flags(tuple->proto, v6)) ||
	    ctx_l4_csum_diff(ctx, at, csum_fold32(ports), csum_flags(tuple->proto, v6)))
		return REFUSE(DROP_CSUM_L4);
	refused = v6 ? ends6_write(ctx, packet, ends) : ends4_write(ctx, packet, ends, diff);
	if (refused)
		return refused;
	flow_note_source(packet, v6);
	address_copy(tuple->saddr, ends->source.word, v6);
	address_copy(tuple->daddr, ends->destination.word, v6);
	tuple->sport = ends->sport;
	tuple->dport = ends->dport;
	packet->ttl--;
	return 0;
}

PER_FAMILY_WITH(forward_plain, const struct packet_ends, REFUSE(DROP_WRITE_ERROR))

/* One side after the other. */
static __always_inline int forward_sides(ctx_t *ctx, struct packet *packet,
					 const struct packet_ends *ends, const bool v6)
{
	int refused = packet_decrement_ttl(ctx, packet, v6);

	if (!refused)
		refused = BY_FAMILY(v6, packet_set_side, ctx, packet, DESTINATION,
				    &ends->destination, ends->dport);
	return refused ? refused : BY_FAMILY(v6, packet_set_side, ctx, packet, SOURCE,
					     &ends->source, ends->sport);
}

PER_FAMILY_WITH(forward_sides, const struct packet_ends, REFUSE(DROP_WRITE_ERROR))

/* One hop further with other ends, in the packet's bytes and in its tuple. 0 or a refusal. */
static __always_inline int packet_forward(ctx_t *ctx, struct packet *packet,
					  const struct packet_ends *ends, const bool v6)
{
	__u8 proto = packet->tuple.proto;

	if (packet->ttl <= 1)
		return REFUSE(DROP_TTL_EXCEEDED);
	if ((proto != IPPROTO_TCP && proto != IPPROTO_UDP) ||
	    (packet->flags & (PACKET_ICMP_ERROR | PACKET_LATER)))
		return BY_FAMILY(v6, forward_sides, ctx, packet, ends);
	return BY_FAMILY(v6, forward_plain, ctx, packet, ends);
}

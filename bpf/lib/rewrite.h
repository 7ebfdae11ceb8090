/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Other addresses and ports for a packet, with all checksums that cover them.
 *
 * What is source and destination says the tuple. An ICMP error has the tuple of a reply to the packet
 * that it quotes, so a new source of the error is a new destination inside, and the quoted headers are
 * corrected too: the sender must recognise what it sent.
 */
#include "csum.h"
#include "flow_note.h"
#include "packet.h"

#define SOURCE 0
#define DESTINATION 1

#define IP4_CSUM 10		/* offsets in headers */
#define IP4_TTL 8
#define IP6_HOP_LIMIT 7
#define TCP_CSUM 16
#define UDP_CSUM 6
#define SCTP_CSUM 8
#define ICMP_CSUM 2

/* Offset of an address from the start of the IP header. */
static __always_inline __u32 address_at(int side, const bool v6)
{
	if (v6)
		return side == SOURCE ? 8 : 24;
	return side == SOURCE ? 12 : 16;
}

/* Offset of the checksum in a transport header, 0 if there is none to be corrected. */
static __always_inline __u32 csum_offset(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return TCP_CSUM;
	case IPPROTO_UDP:
		return UDP_CSUM;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return ICMP_CSUM;
	default:
		return 0;
	}
}

static __always_inline int csum_flags(__u8 proto, const bool v6)
{
	return (proto == IPPROTO_UDP ? CSUM_UDP : 0) | (v6 ? CSUM_V6 : 0);
}

/* The CRC covers no address, and a change of ports is a change of the first 4 bytes. It cannot be
 * corrected where the length of the whole is unknown; 0 stands for none (RFC 9653). */
static __always_inline int rewrite_sctp_port(ctx_t *ctx, const struct packet *packet, __be16 old,
					     __be16 port, __u32 shift)
{
	__u32 at = packet->l4 + SCTP_CSUM;
	__u32 crc;

	if ((packet->flags & PACKET_FRAGMENT) || ctx_load_bytes(ctx, at, &crc, sizeof(crc)))
		return REFUSE(DROP_CSUM_L4);
	if (!crc)
		return 0;
	crc ^= crc32c_change((__u32)(old ^ port) << shift, packet->l4_bytes);
	if (ctx_store_bytes(ctx, at, &crc, sizeof(crc)))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

static __always_inline int rewrite_port(ctx_t *ctx, const struct packet *packet, int side,
					__be16 old, __be16 port, const bool v6)
{
	__u32 at = side == SOURCE ? packet->sport_at : packet->dport_at;
	__u8 proto = packet->tuple.proto;
	__u32 csum = csum_offset(proto);

	if (!at || old == port)
		return 0;
	if (csum && ctx_l4_csum_diff(ctx, packet->l4 + csum, csum_diff16(old, port, 0),
				     csum_flags(proto, v6)))
		return REFUSE(DROP_CSUM_L4);
	if (proto == IPPROTO_SCTP) {
		int refused = rewrite_sctp_port(ctx, packet, old, port, side == SOURCE ? 0 : 16);

		if (refused)
			return refused;
	}
	if (ctx_store_bytes(ctx, at, &port, sizeof(port)))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

/* An address in the outer IP header; diff is the difference between the two. */
static __always_inline int rewrite_address(ctx_t *ctx, const struct packet *packet, int side,
					   const __be32 *address, __s64 diff, const bool v6)
{
	__u32 size = v6 ? 16 : 4;

	if (!v6 && ctx_l3_csum_diff(ctx, packet->l3 + IP4_CSUM, diff))
		return REFUSE(DROP_CSUM_L3);
	if (ctx_store_bytes(ctx, packet->l3 + address_at(side, v6), address, size))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

/* A 16-bit field inside a quoted packet gets what the difference makes of it; the sum of all changes
 * grows by its own. */
static __always_inline int rewrite_inner_csum(ctx_t *ctx, __u32 at, __s64 diff, bool zero_is_none,
					      __s64 *sum)
{
	__be16 old, new;

	/* An error quotes what it has room for: there is nothing to correct then. */
	if (ctx_load_bytes(ctx, at, &old, sizeof(old)) || (zero_is_none && !old))
		return 0;
	new = csum_changed(old, diff);
	if (zero_is_none && !new)
		new = 0xffff;
	*sum = csum_diff16(old, new, *sum);
	return ctx_store_bytes(ctx, at, &new, sizeof(new)) ? -1 : 0;
}

/* The side of a quoted packet that is this side of the tuple: address, port, checksums. */
static __always_inline int rewrite_inner(ctx_t *ctx, const struct packet *packet, int side,
					 const __be32 *address, __s64 diff, __be16 old_port,
					 __be16 port, __s64 *sum, const bool v6)
{
	const int inner_side = side == SOURCE ? DESTINATION : SOURCE;
	__u32 port_at = side == SOURCE ? packet->sport_at : packet->dport_at;
	__u8 proto = packet->tuple.proto;
	__u32 csum = csum_offset(proto);
	__s64 transport = proto == IPPROTO_ICMP ? 0 : diff;	/* what its checksum covers */

	*sum = diff;
	if (ctx_store_bytes(ctx, packet->inner_l3 + address_at(inner_side, v6), address, v6 ? 16 : 4))
		return REFUSE(DROP_WRITE_ERROR);
	if (!v6 && rewrite_inner_csum(ctx, packet->inner_l3 + IP4_CSUM, diff, false, sum))
		return REFUSE(DROP_WRITE_ERROR);
	if (port_at && old_port != port) {
		*sum = csum_diff16(old_port, port, *sum);
		transport = csum_diff16(old_port, port, transport);
		if (ctx_store_bytes(ctx, port_at, &port, sizeof(port)))
			return REFUSE(DROP_WRITE_ERROR);
	}
	if (csum && rewrite_inner_csum(ctx, packet->inner_l4 + csum, transport,
				       proto == IPPROTO_UDP, sum))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

/* An ICMP error. Its own address changes only where it is the one that the tuple names: a router on
 * the way speaks for itself. */
static __always_inline int rewrite_error(ctx_t *ctx, const struct packet *packet, int side,
					 const __be32 *old, const __be32 *address, __be16 old_port,
					 __be16 port, const bool v6)
{
	__u32 size = v6 ? 16 : 4, csum = packet->l4 + ICMP_CSUM;
	__s64 diff = bpf_csum_diff((__be32 *)old, size, (__be32 *)address, size, 0);
	__be32 outer[4] = {};
	__s64 sum;
	int refused;

	refused = rewrite_inner(ctx, packet, side, address, diff, old_port, port, &sum, v6);
	if (refused)
		return refused;
	if (ctx_l4_csum_diff(ctx, csum, sum, v6 ? CSUM_V6 : 0))
		return REFUSE(DROP_CSUM_L4);
	if (ctx_load_bytes(ctx, packet->l3 + address_at(side, v6), outer, size))
		return REFUSE(DROP_INVALID_PACKET);
	if (!address_equal(outer, old, v6))
		return 0;
	if (v6 && ctx_l4_csum_diff(ctx, csum, diff, CSUM_PSEUDO | CSUM_V6))
		return REFUSE(DROP_CSUM_L4);
	return rewrite_address(ctx, packet, side, address, diff, v6);
}

static __always_inline int rewrite_plain(ctx_t *ctx, const struct packet *packet, int side,
					 const __be32 *old, const __be32 *address, __be16 old_port,
					 __be16 port, const bool v6)
{
	__u32 size = v6 ? 16 : 4;
	__s64 diff = bpf_csum_diff((__be32 *)old, size, (__be32 *)address, size, 0);
	__u8 proto = packet->tuple.proto;
	__u32 csum = csum_offset(proto);
	int refused;

	/* In IPv4, ICMP has no pseudo header. */
	if (csum && proto != IPPROTO_ICMP && !(packet->flags & PACKET_LATER) &&
	    ctx_l4_csum_diff(ctx, packet->l4 + csum, diff, CSUM_PSEUDO | csum_flags(proto, v6)))
		return REFUSE(DROP_CSUM_L4);
	refused = rewrite_address(ctx, packet, side, address, diff, v6);
	if (refused)
		return refused;
	return rewrite_port(ctx, packet, side, old_port, port, v6);
}

static __always_inline int rewrite_side(ctx_t *ctx, struct packet *packet, int side,
					const __be32 *address, __be16 port, const bool v6)
{
	struct tuple *tuple = &packet->tuple;
	__be32 *old = side == SOURCE ? tuple->saddr : tuple->daddr;
	__be16 old_port = side == SOURCE ? tuple->sport : tuple->dport;
	int refused;

	if (packet->flags & PACKET_ICMP_ERROR)
		refused = rewrite_error(ctx, packet, side, old, address, old_port, port, v6);
	else
		refused = rewrite_plain(ctx, packet, side, old, address, old_port, port, v6);
	if (refused)
		return refused;
	if (side == SOURCE)
		flow_note_source(packet, v6);
	address_copy(old, address, v6);
	if (side == SOURCE)
		tuple->sport = port;
	else
		tuple->dport = port;
	return 0;
}

/* All of address is readable in both families: the verifier demands it of a global function's pointer. */
static __always_inline int packet_set_side(ctx_t *ctx, struct packet *packet, int side,
					   const struct address *address, __u32 port, const bool v6)
{
	if (side == SOURCE)
		return rewrite_side(ctx, packet, SOURCE, address->word, port, v6);
	return rewrite_side(ctx, packet, DESTINATION, address->word, port, v6);
}

PER_FAMILY_OF(packet_set_side, REFUSE(DROP_WRITE_ERROR), packet && address,
	      (ctx_t *ctx, struct packet *packet, int side, const struct address *address, __u32 port),
	      ctx, packet, side, address, port)

/* Give one side of the packet another address and port (network order), in its bytes and in its
 * tuple. A port that the packet does not have changes in the tuple only: later fragments, the side
 * without identifier of an echo. 0 or a refusal. */
static __always_inline int packet_set(ctx_t *ctx, struct packet *packet, int side,
				      const __be32 *address, __be16 port, const bool v6)
{
	struct address to = {};

	address_copy(to.word, address, v6);
	return BY_FAMILY(v6, packet_set_side, ctx, packet, side, &to, port);
}

#define packet_set_source(ctx, packet, address, port, v6) \
	packet_set(ctx, packet, SOURCE, address, port, v6)
#define packet_set_destination(ctx, packet, address, port, v6) \
	packet_set(ctx, packet, DESTINATION, address, port, v6)

/* One hop further. A packet at its end is refused: DROP_TTL_EXCEEDED. */
static __always_inline int packet_decrement_ttl(ctx_t *ctx, struct packet *packet, const bool v6)
{
	__u8 ttl = packet->ttl - 1;
	__s64 diff;

	if (packet->ttl <= 1)
		return REFUSE(DROP_TTL_EXCEEDED);
	diff = csum_diff16(bpf_htons(packet->ttl << 8), bpf_htons(ttl << 8), 0);
	if (!v6 && ctx_l3_csum_diff(ctx, packet->l3 + IP4_CSUM, diff))
		return REFUSE(DROP_CSUM_L3);
	if (ctx_store_bytes(ctx, packet->l3 + (v6 ? IP6_HOP_LIMIT : IP4_TTL), &ttl, sizeof(ttl)))
		return REFUSE(DROP_WRITE_ERROR);
	packet->ttl = ttl;
	return 0;
}

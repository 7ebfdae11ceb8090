/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Who speaks to whom, and where that stands in a packet.
 *
 * Both families share the structs: an IPv4 address is the first word, the others are 0. What is done
 * with them takes the family as a constant argument v6, so that each program has one copy a family.
 */
#include "common.h"

struct address {
	__be32 word[4];
};

struct tuple {
	__be32 daddr[4];
	__be32 saddr[4];
	__be16 dport;		/* ICMP echo: identifier of an answer, 0 in a request */
	__be16 sport;		/* ICMP echo: identifier of a request, 0 in an answer */
	__u8 proto;
	__u8 pad[3];
};

/* packet.flags */
#define PACKET_FRAGMENT 0x01	/* any part of a fragmented datagram */
#define PACKET_LATER 0x02	/* not the first one: there is no transport header */
#define PACKET_NO_PORTS 0x04	/* a later one whose first fragment was not seen */
#define PACKET_ICMP_ERROR 0x08	/* the tuple is that of the packet it is about, exchanged */
#define PACKET_V6 0x10
#define PACKET_SOUGHT 0x20	/* the backend of its connection was looked for by address */
#define PACKET_STRAY 0x40	/* TCP in its middle, of no flow that has an entry */

struct packet {
	/* Of an ICMP error: of the packet that it quotes, with source and destination exchanged, because
	 * it travels like a reply to that. */
	struct tuple tuple;
	__u32 fragment_id;
	__u16 l3;		/* offset of the IP header */
	__u16 l4;		/* of the transport or ICMP header, or of what is in a later fragment */
	__u16 l4_bytes;		/* by the IP header, 0 if that does not say (jumbo) */
	__u16 sport_at;		/* offset of the field that is tuple.sport; 0: not in this packet */
	__u16 dport_at;
	__u16 inner_l3;		/* of the packet that an ICMP error quotes */
	__u16 inner_l4;
	__u8 tcp_flags;		/* byte 13 of the header */
	__u8 flags;		/* PACKET_* */
	__u8 ttl;
	__u8 flow_state;	/* FLOW_*, for traces: see flow_note.h */
	__u16 flow_changes;	/* not 0: it opens, closes or changes its flow */
#ifdef CILIA_FLOWS
	__u64 verdict;		/* of the entry that it was found to belong to: see ct_verdict */
#endif
	struct address original;	/* its source before we translated it, for traces; 0: we did not */
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline bool address_equal(const __be32 *one, const __be32 *other, const bool v6)
{
	if (one[0] != other[0])
		return false;
	return !v6 || !((one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3]));
}

static __always_inline void address_copy(__be32 *to, const __be32 *from, const bool v6)
{
	to[0] = from[0];
	if (v6) {
		to[1] = from[1];
		to[2] = from[2];
		to[3] = from[3];
	}
}

/* The tuple of the replies. */
static __always_inline void tuple_exchange(struct tuple *to, const struct tuple *from)
{
	address_copy(to->daddr, from->saddr, true);
	address_copy(to->saddr, from->daddr, true);
	to->dport = from->sport;
	to->sport = from->dport;
	to->proto = from->proto;
}

/* TCP that opens a connection. */
static __always_inline bool packet_opens_tcp(const struct packet *packet)
{
	return packet->tuple.proto == IPPROTO_TCP && !(packet->flags & PACKET_ICMP_ERROR) &&
	       (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

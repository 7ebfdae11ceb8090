/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* From bytes to struct packet: Ethernet's payload, IPv4 with options, IPv6 with extension headers,
 * fragments, TCP, UDP, SCTP, ICMP echo, and ICMP errors by the packet that they quote.
 *
 * What has no tuple (ARP, other protocols, other ICMP messages) is PACKET_OTHER: not our business.
 */
#include "ctx.h"
#include "drop.h"
#include "fragment.h"
#include "tuple.h"
#include <linux/ip.h>
#include <linux/ipv6.h>

#define PACKET_OTHER 1

#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define IPV6_FRAGMENT_OFFSET 0xfff8
#define IPV6_MORE_FRAGMENTS 0x0001

/* linux/icmp.h needs a C library. Types of RFC 792 and RFC 4443. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_TIME_EXCEED 3
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

/* Of both families. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;		/* of an echo; other messages have 4 bytes of their own here */
	__be16 sequence;
};

#define EXTENSIONS 6	/* IPv6 extension headers, at most; senders use two or three */

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

/* Past the extension headers at packet->l4, which next announces; sets proto, l4 and fragment. */
static __noinline int packet_extensions(ctx_t *ctx, struct packet *packet, __u32 next)
{
	struct fragment_header extension;
	__u32 at = packet->l4;

	for (int i = 0; i < EXTENSIONS; i++) {
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_AH:
		case IPPROTO_FRAGMENT:
			break;
		default:
			packet->tuple.proto = next;
			packet->l4 = at;
			return 0;
		}
		if (ctx_load_bytes(ctx, at, &extension, sizeof(extension)))
			return REFUSE(DROP_INVALID_PACKET);
		if (next == IPPROTO_FRAGMENT) {
			packet->fragment_id = extension.id;
			if (extension.offset & bpf_htons(IPV6_FRAGMENT_OFFSET | IPV6_MORE_FRAGMENTS))
				packet->flags |= PACKET_FRAGMENT;
			at += sizeof(extension);
			if (extension.offset & bpf_htons(IPV6_FRAGMENT_OFFSET)) {
				packet->flags |= PACKET_LATER;
				packet->tuple.proto = extension.next;
				packet->l4 = at;
				return 0;
			}
		} else if (next == IPPROTO_AH) {
			at += (extension.reserved + 2) << 2;
		} else {
			at += (extension.reserved + 1) << 3;
		}
		next = extension.next;
	}
	return REFUSE(DROP_INVALID_EXTHDR);
}

/* TCP up to its flags. */
struct tcp_begin {
	__be16 ports[2];
	__be32 sequence;
	__be32 acknowledged;
	__u8 offset;
	__u8 flags;
	__u8 pad[2];		/* of the window */
};

static __always_inline void packet_set_ports(struct packet *packet, __u32 at, const __be16 *ports)
{
	packet->sport_at = at;
	packet->dport_at = at + sizeof(__be16);
	packet->tuple.sport = ports[0];
	packet->tuple.dport = ports[1];
}

/* The two ports that transport begins with. */
static __always_inline int packet_ports(ctx_t *ctx, struct packet *packet, __u32 at)
{
	__be16 ports[2];

	if (ctx_load_bytes(ctx, at, ports, sizeof(ports)))
		return REFUSE(DROP_INVALID_PACKET);
	packet_set_ports(packet, at, ports);
	return 0;
}

static __always_inline int packet_echo(struct packet *packet, const struct icmp_header *icmp, __u32 at,
				       bool request)
{
	at += __builtin_offsetof(struct icmp_header, id);
	if (request) {
		packet->tuple.sport = icmp->id;
		packet->sport_at = at;
	} else {
		packet->tuple.dport = icmp->id;
		packet->dport_at = at;
	}
	return 0;
}

/* Source and destination in the tuple and the packet exchanged. */
static __always_inline void packet_exchange(struct packet *packet)
{
	struct tuple tuple = packet->tuple;
	__u16 at = packet->sport_at;

	packet->sport_at = packet->dport_at;
	packet->dport_at = at;
	tuple_exchange(&packet->tuple, &tuple);
}

/* Transport of the packet that an error quotes, at inner_l4; echoes have an identifier. */
static __always_inline int packet_inner_ports(ctx_t *ctx, struct packet *packet, const bool v6)
{
	const __u8 request = v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;
	const __u8 answer = v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY;
	struct icmp_header icmp;

	switch (packet->tuple.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (packet_ports(ctx, packet, packet->inner_l4))
			return PACKET_OTHER;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (ctx_load_bytes(ctx, packet->inner_l4, &icmp, sizeof(icmp)))
			return PACKET_OTHER;
		if (icmp.type != request && icmp.type != answer)
			return PACKET_OTHER;
		packet_echo(packet, &icmp, packet->inner_l4, icmp.type == request);
		break;
	default:
		return PACKET_OTHER;
	}
	packet_exchange(packet);
	return 0;
}

/* An error about a later fragment has no ports to tell whom it concerns. */
static __always_inline int packet_inner4(ctx_t *ctx, struct packet *packet)
{
	struct iphdr ip;

	packet->inner_l3 = packet->l4 + sizeof(struct icmp_header);
	if (ctx_load_bytes(ctx, packet->inner_l3, &ip, sizeof(ip)))
		return PACKET_OTHER;
	if (ip.version != 4 || ip.ihl < 5 || (ip.frag_off & bpf_htons(IP_FRAGMENT_OFFSET)))
		return PACKET_OTHER;
	packet->flags |= PACKET_ICMP_ERROR;
	packet->tuple.daddr[0] = ip.daddr;
	packet->tuple.saddr[0] = ip.saddr;
	packet->tuple.proto = ip.protocol;
	packet->inner_l4 = packet->inner_l3 + ip.ihl * 4;
	return packet_inner_ports(ctx, packet, false);
}

static __always_inline int packet_inner6(ctx_t *ctx, struct packet *packet)
{
	__u16 l4 = packet->l4;
	struct ipv6hdr ip;
	int refused;

	packet->inner_l3 = l4 + sizeof(struct icmp_header);
	if (ctx_load_bytes(ctx, packet->inner_l3, &ip, sizeof(ip)) || ip.version != 6)
		return PACKET_OTHER;
	packet->l4 = packet->inner_l3 + sizeof(ip);
	refused = packet_extensions(ctx, packet, ip.nexthdr);
	packet->inner_l4 = packet->l4;
	packet->l4 = l4;
	if (refused || (packet->flags & PACKET_LATER))
		return PACKET_OTHER;
	/* It is the quoted packet that was a fragment. */
	packet->flags = PACKET_V6 | PACKET_ICMP_ERROR;
	__builtin_memcpy(packet->tuple.daddr, &ip.daddr, sizeof(ip.daddr));
	__builtin_memcpy(packet->tuple.saddr, &ip.saddr, sizeof(ip.saddr));
	return packet_inner_ports(ctx, packet, true);
}

static __always_inline int packet_icmp4(ctx_t *ctx, struct packet *packet)
{
	struct icmp_header icmp;

	if (ctx_load_bytes(ctx, packet->l4, &icmp, sizeof(icmp)))
		return REFUSE(DROP_INVALID_PACKET);
	switch (icmp.type) {
	case ICMP_ECHO:
	case ICMP_ECHOREPLY:
		return packet_echo(packet, &icmp, packet->l4, icmp.type == ICMP_ECHO);
	case ICMP_DEST_UNREACH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return packet_inner4(ctx, packet);
	default:
		return PACKET_OTHER;
	}
}

static __always_inline int packet_icmp6(ctx_t *ctx, struct packet *packet)
{
	struct icmp_header icmp;

	if (ctx_load_bytes(ctx, packet->l4, &icmp, sizeof(icmp)))
		return REFUSE(DROP_INVALID_PACKET);
	switch (icmp.type) {
	case ICMPV6_ECHO_REQUEST:
	case ICMPV6_ECHO_REPLY:
		return packet_echo(packet, &icmp, packet->l4, icmp.type == ICMPV6_ECHO_REQUEST);
	case ICMPV6_DEST_UNREACH:
	case ICMPV6_PKT_TOOBIG:
	case ICMPV6_TIME_EXCEED:
	case ICMPV6_PARAMPROB:
		return packet_inner6(ctx, packet);
	default:
		return PACKET_OTHER;
	}
}

/* Of ICMP an echo alone may be long enough for fragments. */
static __always_inline int packet_icmp(ctx_t *ctx, struct packet *packet, const bool v6)
{
	const __u8 request = v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;
	const __u8 answer = v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY;
	__u8 type;

	if (packet->flags & PACKET_LATER)
		return 0;
	if (packet->flags & PACKET_FRAGMENT) {
		if (ctx_load_bytes(ctx, packet->l4, &type, sizeof(type)))
			return REFUSE(DROP_INVALID_PACKET);
		if (type != request && type != answer)
			return PACKET_OTHER;
	}
	return v6 ? packet_icmp6(ctx, packet) : packet_icmp4(ctx, packet);
}

/* Ports and flags. A header that is cut before its flags fails where its checksum is needed. */
static __always_inline int packet_tcp(ctx_t *ctx, struct packet *packet)
{
	struct tcp_begin begin;

	if (ctx_load_bytes(ctx, packet->l4, &begin, sizeof(begin)))
		return packet_ports(ctx, packet, packet->l4);
	packet_set_ports(packet, packet->l4, begin.ports);
	packet->tcp_flags = begin.flags;
	return 0;
}

static __always_inline int packet_transport(ctx_t *ctx, struct packet *packet, const bool v6)
{
	switch (packet->tuple.proto) {
	case IPPROTO_TCP:
		return packet->flags & PACKET_LATER ? 0 : packet_tcp(ctx, packet);
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		break;
	case IPPROTO_ICMP:
		return v6 ? PACKET_OTHER : packet_icmp(ctx, packet, false);
	case IPPROTO_ICMPV6:
		return v6 ? packet_icmp(ctx, packet, true) : PACKET_OTHER;
	default:
		return PACKET_OTHER;
	}
	return packet->flags & PACKET_LATER ? 0 : packet_ports(ctx, packet, packet->l4);
}

static __noinline int packet_parse4(ctx_t *ctx, struct packet *packet)
{
	struct iphdr ip;
	int other;

	if (ctx_load_bytes(ctx, packet->l3, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return REFUSE(DROP_INVALID_PACKET);
	packet->tuple.daddr[0] = ip.daddr;
	packet->tuple.saddr[0] = ip.saddr;
	packet->tuple.proto = ip.protocol;
	packet->ttl = ip.ttl;
	packet->l4 = packet->l3 + ip.ihl * 4;
	packet->l4_bytes = bpf_ntohs(ip.tot_len) - ip.ihl * 4;
	packet->fragment_id = ip.id;
	if (ip.frag_off & bpf_htons(IP_FRAGMENT_OFFSET | IP_MORE_FRAGMENTS))
		packet->flags |= PACKET_FRAGMENT;
	if (ip.frag_off & bpf_htons(IP_FRAGMENT_OFFSET))
		packet->flags |= PACKET_LATER;
	other = packet_transport(ctx, packet, false);
	if (!other && (packet->flags & PACKET_FRAGMENT))
		fragment_ports(packet, false);
	return other;
}

static __noinline int packet_parse6(ctx_t *ctx, struct packet *packet)
{
	struct ipv6hdr ip;
	int other;

	if (ctx_load_bytes(ctx, packet->l3, &ip, sizeof(ip)) || ip.version != 6)
		return REFUSE(DROP_INVALID_PACKET);
	packet->flags |= PACKET_V6;
	__builtin_memcpy(packet->tuple.daddr, &ip.daddr, sizeof(ip.daddr));
	__builtin_memcpy(packet->tuple.saddr, &ip.saddr, sizeof(ip.saddr));
	packet->ttl = ip.hop_limit;
	packet->l4 = packet->l3 + sizeof(ip);
	other = packet_extensions(ctx, packet, ip.nexthdr);
	if (other)
		return other;
	packet->l4_bytes = bpf_ntohs(ip.payload_len) - (packet->l4 - packet->l3 - sizeof(ip));
	other = packet_transport(ctx, packet, true);
	if (!other && (packet->flags & PACKET_FRAGMENT))
		fragment_ports(packet, true);
	return other;
}

/* Parse the packet whose IP header is at l3 (ETH_HLEN, or 0 on a device without frames). 0: all of
 * struct packet is valid, and PACKET_V6 in its flags tells the family; PACKET_OTHER; or a refusal. */
static __always_inline int packet_parse(ctx_t *ctx, struct packet *packet, __u32 l3)
{
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->l3 = l3;
	switch (ctx_protocol(ctx)) {
	case bpf_htons(ETH_P_IP):
		return packet_parse4(ctx, packet);
	case bpf_htons(ETH_P_IPV6):
		return packet_parse6(ctx, packet);
	default:
		return PACKET_OTHER;
	}
}

/* Source and destination of the packet itself: an ICMP error has those of another one in its tuple. */
struct packet_addresses {
	__be32 source[4];
	__be32 destination[4];
};

/* Of a packet that was parsed as IP. The words behind an IPv4 address stay as they are. */
static __always_inline int packet_addresses(ctx_t *ctx, const struct packet *packet,
					    struct packet_addresses *addresses, const bool v6)
{
	__be32 both[2];

	if (v6)
		return ctx_load_bytes(ctx, packet->l3 + __builtin_offsetof(struct ipv6hdr, saddr),
				      addresses, sizeof(*addresses));
	if (ctx_load_bytes(ctx, packet->l3 + __builtin_offsetof(struct iphdr, saddr), both, sizeof(both)))
		return -1;
	addresses->source[0] = both[0];
	addresses->destination[0] = both[1];
	return 0;
}

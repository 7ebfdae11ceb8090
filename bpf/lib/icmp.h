/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The answer to a packet that nobody serves: ICMP «port unreachable», and a reset for what would open a
 * TCP connection.
 *
 * No error is answered, no later fragment and nothing that was sent to or by many (RFC 1122, 3.2.2),
 * so two nodes cannot answer each other; and a CPU sends a limited number a second.
 */
#include "csum.h"
#include "node_config.h"
#include "packet.h"
#include "reset.h"

#define ICMP_PORT_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define ICMPV6_PORT_UNREACH 4
#define ICMP_QUOTED 128		/* bytes of the refused packet, from its IP header; a multiple of 4 */
#define ICMP_TTL 64

struct icmp_budget {
	__u64 second;
	__u32 sent;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct icmp_budget);
	__uint(max_entries, 1);
} cilia_icmp SEC(".maps");

/* What stands before the quoted packet. */
struct icmp4_answer {
	struct iphdr ip;
	struct icmp_header icmp;
};

struct icmp6_answer {
	struct ipv6hdr ip;
	struct icmp_header icmp;
};

static __always_inline bool icmp_within_budget(void)
{
	__u64 second = bpf_ktime_get_coarse_ns() / NSEC_PER_S;
	struct icmp_budget *budget;
	__u32 zero = 0;

	budget = bpf_map_lookup_elem(&cilia_icmp, &zero);
	if (!budget)
		return false;
	if (budget->second != second) {
		budget->second = second;
		budget->sent = 0;
	}
	return budget->sent++ < icmp_rate_per_s;
}

/* Whether the rules allow an answer to this packet. */
static __always_inline bool icmp_answerable(ctx_t *ctx, const struct packet *packet)
{
	const struct tuple *tuple = &packet->tuple;
	__u8 mac;

	if (packet->flags & (PACKET_ICMP_ERROR | PACKET_LATER))
		return false;
	if (tuple->proto == IPPROTO_TCP && (packet->tcp_flags & TCP_RST))
		return false;
	/* The group bit of the frame's destination: multicast or broadcast. */
	if (packet->l3 != ETH_HLEN || ctx_load_bytes(ctx, 0, &mac, sizeof(mac)) || (mac & 1))
		return false;
	if (packet->flags & PACKET_V6)
		return (bpf_ntohl(tuple->saddr[0]) >> 24) != 0xff &&
		       (tuple->saddr[0] | tuple->saddr[1] | tuple->saddr[2] | tuple->saddr[3]);
	/* Of IPv4: neither 0/8 nor multicast, reserved or broadcast. */
	return tuple->saddr[0] & bpf_htonl(0xff000000) &&
	       (bpf_ntohl(tuple->saddr[0]) >> 28) < 0xe;
}

/* The ICMP header over what is quoted; seed is the sum of the pseudo header. */
static __noinline int icmp_sum(ctx_t *ctx, __u32 at, __u32 size, __u64 seed)
{
	__be32 quoted[ICMP_QUOTED / sizeof(__be32)] = {};
	__u32 last = size - 1;

	/* By the index of the last byte: see event_packet. */
	if (last >= ICMP_QUOTED)
		return -1;
	barrier_var(last);
	if (ctx_load_bytes(ctx, at, quoted, last + 1))
		return -1;
	return csum_fold((__u32)bpf_csum_diff(0, 0, quoted, sizeof(quoted), (__u32)seed));
}

/* The packet cut to what is quoted, with room for the answer's headers before its IP header. The room
 * and the old Ethernet header are as long as the new headers with theirs. */
static __always_inline int icmp_make_room(ctx_t *ctx, __u32 room, __u32 *quoted)
{
	struct ethhdr eth;
	__u32 size = ctx_length(ctx) - ETH_HLEN;

	if (ctx_load_bytes(ctx, 0, &eth, sizeof(eth)))
		return -1;
	*quoted = size > ICMP_QUOTED ? ICMP_QUOTED : size;
	if (size > ICMP_QUOTED && ctx_change_tail(ctx, ETH_HLEN + ICMP_QUOTED))
		return -1;
	if (ctx_change_head(ctx, room) || ctx_store_bytes(ctx, 0, &eth, sizeof(eth)))
		return -1;
	return ctx_swap_macs(ctx);
}

/* mtu 0: port unreachable; else too big, as a link has this MTU. */
static __noinline int icmp4_send(ctx_t *ctx, const struct packet *packet, __u32 mtu)
{
	struct icmp4_answer answer = {
		.ip.version = 4,
		.ip.ihl = 5,
		.ip.ttl = ICMP_TTL,
		.ip.protocol = IPPROTO_ICMP,
		.ip.saddr = packet->tuple.daddr[0],
		.ip.daddr = packet->tuple.saddr[0],
		.icmp.type = ICMP_DEST_UNREACH,
		.icmp.code = mtu ? ICMP_FRAG_NEEDED : ICMP_PORT_UNREACH,
		.icmp.sequence = bpf_htons(mtu),
	};
	__u32 quoted;
	__u64 sum;
	int csum;

	if (icmp_make_room(ctx, sizeof(answer), &quoted))
		return -1;
	answer.ip.tot_len = bpf_htons(sizeof(answer) + quoted);
	sum = bpf_csum_diff(0, 0, (__be32 *)&answer.ip, sizeof(answer.ip), 0);
	answer.ip.check = csum_fold((__u32)sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)&answer.icmp, sizeof(answer.icmp), 0);
	csum = icmp_sum(ctx, ETH_HLEN + sizeof(answer), quoted, sum);
	if (csum < 0)
		return -1;
	answer.icmp.checksum = csum;
	return ctx_store_bytes(ctx, ETH_HLEN, &answer, sizeof(answer)) ? -1 : 0;
}

static __noinline int icmp6_send(ctx_t *ctx, const struct packet *packet, __u32 mtu)
{
	struct icmp6_answer answer = {
		.ip.version = 6,
		.ip.hop_limit = ICMP_TTL,
		.ip.nexthdr = IPPROTO_ICMPV6,
		.icmp.type = mtu ? ICMPV6_PKT_TOOBIG : ICMPV6_DEST_UNREACH,
		.icmp.code = mtu ? 0 : ICMPV6_PORT_UNREACH,
		.icmp.sequence = bpf_htons(mtu),	/* the lower half of 32 bits */
	};
	__be32 pseudo[2];
	__u32 quoted;
	__u64 sum;
	int csum;

	if (icmp_make_room(ctx, sizeof(answer), &quoted))
		return -1;
	__builtin_memcpy(&answer.ip.saddr, packet->tuple.daddr, sizeof(answer.ip.saddr));
	__builtin_memcpy(&answer.ip.daddr, packet->tuple.saddr, sizeof(answer.ip.daddr));
	answer.ip.payload_len = bpf_htons(sizeof(answer.icmp) + quoted);
	pseudo[0] = bpf_htonl(sizeof(answer.icmp) + quoted);
	pseudo[1] = bpf_htonl(IPPROTO_ICMPV6);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&answer.ip.saddr, 2 * sizeof(answer.ip.saddr), (__u32)sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)&answer.icmp, sizeof(answer.icmp), (__u32)sum);
	csum = icmp_sum(ctx, ETH_HLEN + sizeof(answer), quoted, sum);
	if (csum < 0)
		return -1;
	answer.icmp.checksum = csum;
	return ctx_store_bytes(ctx, ETH_HLEN, &answer, sizeof(answer)) ? -1 : 0;
}

static __always_inline int icmp_send(ctx_t *ctx, const struct packet *packet, __u32 mtu)
{
	int failed;

	if (!icmp_answerable(ctx, packet) || !icmp_within_budget())
		return CTX_DROP;
	failed = packet->flags & PACKET_V6 ? icmp6_send(ctx, packet, mtu) :
					     icmp4_send(ctx, packet, mtu);
	return failed ? CTX_DROP : ctx_redirect(ctx, ctx_ifindex(ctx));
}

/* Make the packet the answer to its sender, from the address that he asked; the caller has counted the
 * drop. The verdict: back out of the device that it came by, or dropped.
 *
 * A client of TCP would take ICMP for a refusal too, but over IPv6 Linux puts aside the error that
 * arrives during connect(), and fails only by the one about the next SYN, a second later. */
static __always_inline int icmp_unreachable(ctx_t *ctx, const struct packet *packet)
{
	int failed;

	if (!lb_reject)
		return CTX_DROP;
	if (!packet_opens_tcp(packet))
		return icmp_send(ctx, packet, 0);
	if (!icmp_answerable(ctx, packet) || !icmp_within_budget())
		return CTX_DROP;
	failed = packet->flags & PACKET_V6 ? tcp6_reset(ctx, packet) : tcp4_reset(ctx, packet);
	return failed ? CTX_DROP : ctx_redirect(ctx, ctx_ifindex(ctx));
}

/* Tell the sender the MTU that his packet exceeds (RFC 1191, RFC 8201). */
static __always_inline int icmp_too_big(ctx_t *ctx, const struct packet *packet, __u32 mtu)
{
	return mtu ? icmp_send(ctx, packet, mtu) : CTX_DROP;
}

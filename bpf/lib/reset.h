/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The reset that refuses a TCP connection: a SYN is made the answer to itself. */
#include "csum.h"
#include "packet.h"

#define RESET_TTL 64

struct tcp_reset {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 length;		/* of the header in words, in the upper half */
	__u8 flags;
	__be16 window;
	__be16 checksum;
	__be16 urgent;
};

#define TCP_SEQ_AT 4
#define TCP_LENGTH_AT 12

struct tcp4_answer {
	struct iphdr ip;
	struct tcp_reset tcp;
};

struct tcp6_answer {
	struct ipv6hdr ip;
	struct tcp_reset tcp;
};

/* Without the checksum. What is acknowledged is the SYN, and what it carried (RFC 9293, 3.10.7.1). */
static __always_inline int tcp_reset_of(ctx_t *ctx, const struct packet *packet,
					struct tcp_reset *reset)
{
	__be32 seq;
	__u8 length;

	if (ctx_load_bytes(ctx, packet->l4 + TCP_SEQ_AT, &seq, sizeof(seq)) ||
	    ctx_load_bytes(ctx, packet->l4 + TCP_LENGTH_AT, &length, sizeof(length)))
		return -1;
	reset->sport = packet->tuple.dport;
	reset->dport = packet->tuple.sport;
	reset->ack = bpf_htonl(bpf_ntohl(seq) + 1 + packet->l4_bytes - (length >> 4) * 4);
	reset->length = (sizeof(*reset) / 4) << 4;
	reset->flags = TCP_RST | TCP_ACK;
	return 0;
}

/* Sum of a pseudo header, from the two addresses on, and of the reset. */
static __always_inline __be16 tcp_reset_sum(struct tcp_reset *reset, __be32 *addresses, __u32 size)
{
	__be32 rest[2] = { bpf_htonl(sizeof(*reset)), bpf_htonl(IPPROTO_TCP) };
	__u64 sum = bpf_csum_diff(0, 0, addresses, size, 0);

	sum = bpf_csum_diff(0, 0, rest, sizeof(rest), (__u32)sum);
	return csum_fold((__u32)bpf_csum_diff(0, 0, (__be32 *)reset, sizeof(*reset), (__u32)sum));
}

static __noinline int tcp4_reset(ctx_t *ctx, const struct packet *packet)
{
	struct tcp4_answer answer = {
		.ip.version = 4,
		.ip.ihl = 5,
		.ip.ttl = RESET_TTL,
		.ip.protocol = IPPROTO_TCP,
		.ip.tot_len = bpf_htons(sizeof(answer)),
		.ip.saddr = packet->tuple.daddr[0],
		.ip.daddr = packet->tuple.saddr[0],
	};

	if (tcp_reset_of(ctx, packet, &answer.tcp) || ctx_swap_macs(ctx) ||
	    ctx_change_tail(ctx, ETH_HLEN + sizeof(answer)))
		return -1;
	answer.ip.check = csum_fold(
		(__u32)bpf_csum_diff(0, 0, (__be32 *)&answer.ip, sizeof(answer.ip), 0));
	answer.tcp.checksum = tcp_reset_sum(&answer.tcp, (__be32 *)&answer.ip.saddr, 8);
	return ctx_store_bytes(ctx, ETH_HLEN, &answer, sizeof(answer)) ? -1 : 0;
}

static __noinline int tcp6_reset(ctx_t *ctx, const struct packet *packet)
{
	struct tcp6_answer answer = {
		.ip.version = 6,
		.ip.hop_limit = RESET_TTL,
		.ip.nexthdr = IPPROTO_TCP,
		.ip.payload_len = bpf_htons(sizeof(answer.tcp)),
	};

	if (tcp_reset_of(ctx, packet, &answer.tcp) || ctx_swap_macs(ctx) ||
	    ctx_change_tail(ctx, ETH_HLEN + sizeof(answer)))
		return -1;
	__builtin_memcpy(&answer.ip.saddr, packet->tuple.daddr, sizeof(answer.ip.saddr));
	__builtin_memcpy(&answer.ip.daddr, packet->tuple.saddr, sizeof(answer.ip.daddr));
	answer.tcp.checksum = tcp_reset_sum(&answer.tcp, (__be32 *)&answer.ip.saddr, 32);
	return ctx_store_bytes(ctx, ETH_HLEN, &answer, sizeof(answer)) ? -1 : 0;
}

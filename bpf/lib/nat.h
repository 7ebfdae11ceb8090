/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Source translation on tuples: who needs a source gets a free port of the node for this
 * destination, and the way back stands beside it.
 *
 * A port is free if the reply's tuple could be inserted as NAT_IN and no socket of the node has it.
 * The whole range is searched from a random place, so that only a full range refuses. Both entries
 * are made or none; what an LRU map evicts of a pair is made anew while the other half is used. The
 * text of both families is nat_family.h. */
#include "common.h"
#include "drop_types.h"
#include "nat_types.h"

/* Set before load. Ports that node ports do not use. */
const volatile __u32 nat_min_port = 32768;
const volatile __u32 nat_max_port = 65535;

/* Set before load, seconds: a flow that nobody answered, one that is answered, one that is over. */
const volatile __u32 nat_timeout_syn_s = 60;
const volatile __u32 nat_timeout_tcp_s = 8000;
const volatile __u32 nat_timeout_closing_s = 10;
const volatile __u32 nat_timeout_any_s = 60;

#define NAT_TCP_FIN 0x01
#define NAT_TCP_SYN 0x02
#define NAT_TCP_RST 0x04
#define NAT_TCP_ACK 0x10

#define CILIA_EEXIST 17

/* Another CPU translates the same flow at the same moment. */
#define NAT_RACED 1

static __always_inline __u32 nat_now_s(void)
{
	return bpf_ktime_get_ns() / 1000000000ULL;
}

static __always_inline __u32 nat_lifetime_s(__u8 proto, __u16 flags)
{
	if (proto != IPPROTO_TCP)
		return nat_timeout_any_s;
	if (flags & NAT_CLOSING)
		return nat_timeout_closing_s;
	return flags & NAT_SEEN_REPLY ? nat_timeout_tcp_s : nat_timeout_syn_s;
}

/* Flags after one more packet, tcp_flags being 0 for other protocols. A new SYN takes a port that
 * was closing into use again. */
static __always_inline __u16 nat_flags_after(__u16 flags, __u8 tcp_flags, bool reply)
{
	if (reply)
		flags |= NAT_SEEN_REPLY;
	else if ((tcp_flags & (NAT_TCP_SYN | NAT_TCP_ACK)) == NAT_TCP_SYN)
		flags &= ~(NAT_CLOSING | NAT_ORIGIN_FIN | NAT_REPLY_FIN | NAT_SEEN_REPLY);
	if (tcp_flags & NAT_TCP_FIN)
		flags |= reply ? NAT_REPLY_FIN : NAT_ORIGIN_FIN;
	if ((tcp_flags & NAT_TCP_RST) ||
	    (flags & (NAT_ORIGIN_FIN | NAT_REPLY_FIN)) == (NAT_ORIGIN_FIN | NAT_REPLY_FIN))
		flags |= NAT_CLOSING;
	return flags;
}

/* Whether a socket of the node would receive the replies that arrive under this tuple. */
static __always_inline bool nat_socket(void *ctx, struct bpf_sock_tuple *tuple, __u32 size,
				       __u8 proto)
{
	struct bpf_sock *sk = NULL;

	if (proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

#define NAT_PASTE_(one, two, three) one##two##three
#define NAT_PASTE(one, two, three) NAT_PASTE_(one, two, three)
#define NAT(name) NAT_PASTE(nat, NAT_FAMILY, name)
#define NAT_MAP NAT_PASTE(cilia_snat, NAT_FAMILY, )
#define NAT_IP NAT_PASTE(ipv, NAT_FAMILY, )
#define nat_copy(to, from) __builtin_memcpy(&(to), &(from), sizeof(to))
#define nat_same(one, two) (!__builtin_memcmp(&(one), &(two), sizeof(one)))

#define NAT_FAMILY 4
#include "nat_family.h"
#undef NAT_FAMILY

#define NAT_FAMILY 6
#include "nat_family.h"
#undef NAT_FAMILY

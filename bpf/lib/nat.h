/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Source translation on tuples: who needs a source gets a free port of the node for this
 * destination, and the way back stands under the tuple of the replies (NAT_IN).
 *
 * A port is free if the reply's tuple could be inserted as NAT_IN and the node has no flow like it. It is
 * looked for at random and then in the whole range, so that only a full range refuses. What a client's
 * flow got stands in its entry of connection tracking; that of a connection of the node itself in a
 * second entry here (NAT_OUT). What an LRU map evicts of two is made anew while the other half is used.
 * The text of both families is nat_family.h. */
#include "ct.h"
#include "nat_types.h"
#include "own_flow.h"

/* Set before load. Ports that node ports do not use. */
const volatile __u32 nat_min_port = 32768;
const volatile __u32 nat_max_port = 65535;

#define CILIA_EEXIST 17

/* Another CPU translates the same flow at the same moment. */
#define NAT_RACED 1

#define NAT_RANDOM_TRIES 16

/* The end that one side of a packet gets. */
struct nat_end {
	__be32 address[4];
	__u32 rev_nat;
	__be16 port;
	__u16 flags;		/* NAT_* */
};

static __always_inline __u32 nat_lifetime_s(__u8 proto, __u16 flags)
{
	if (proto != IPPROTO_TCP)
		return ct_timeout_regular_any_s;
	if (flags & NAT_CLOSING)
		return ct_timeout_regular_tcp_fin_s;
	return flags & NAT_SEEN_REPLY ? ct_timeout_regular_tcp_s : ct_timeout_regular_tcp_syn_s;
}

/* Flags after one more packet, tcp_flags being 0 for other protocols. A new SYN takes a port that
 * was closing into use again. */
static __always_inline __u16 nat_flags_after(__u16 flags, __u8 tcp_flags, bool reply)
{
	if (reply)
		flags |= NAT_SEEN_REPLY;
	else if ((tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		flags &= ~(NAT_CLOSING | NAT_ORIGIN_FIN | NAT_REPLY_FIN | NAT_SEEN_REPLY);
	if (tcp_flags & TCP_FIN)
		flags |= reply ? NAT_REPLY_FIN : NAT_ORIGIN_FIN;
	if ((tcp_flags & TCP_RST) ||
	    (flags & (NAT_ORIGIN_FIN | NAT_REPLY_FIN)) == (NAT_ORIGIN_FIN | NAT_REPLY_FIN))
		flags |= NAT_CLOSING;
	return flags;
}

#define NAT_PASTE_(one, two, three) one##two##three
#define NAT_PASTE(one, two, three) NAT_PASTE_(one, two, three)
#define NAT(name) NAT_PASTE(nat, NAT_FAMILY, name)
#define NAT_MAP NAT_PASTE(cilia_snat, NAT_FAMILY, )
#define NAT_IP NAT_PASTE(ipv, NAT_FAMILY, )
#define NAT_V6 (NAT_FAMILY == 6)
#define nat_copy(to, from) __builtin_memcpy(&(to), &(from), sizeof(to))
#define nat_same(one, two) (!__builtin_memcmp(&(one), &(two), sizeof(one)))

#define NAT_FAMILY 4
#include "nat_family.h"
#undef NAT_FAMILY

#define NAT_FAMILY 6
#include "nat_family.h"
#undef NAT_FAMILY

static __always_inline void nat4_end(struct nat_end *end, const struct nat4_value *value)
{
	end->address[0] = value->address;
	end->port = value->port;
	end->rev_nat = value->rev_nat;
	end->flags = value->flags;
}

static __always_inline void nat6_end(struct nat_end *end, const struct nat6_value *value)
{
	address_copy(end->address, value->address, true);
	end->port = value->port;
	end->rev_nat = value->rev_nat;
	end->flags = value->flags;
}

/* The entry of a tuple as it stands; false if there is none. */
static __always_inline bool nat_find(const struct tuple *tuple, __u8 direction,
				     struct nat_end *end, const bool v6)
{
	const struct nat4_value *value4;
	const struct nat6_value *value6;
	union ct_key key;

	ct_key_of(&key, tuple, direction, v6);
	if (v6) {
		value6 = bpf_map_lookup_elem(&cilia_snat6, &key);
		if (value6)
			nat6_end(end, value6);
		return value6;
	}
	value4 = bpf_map_lookup_elem(&cilia_snat4, &key);
	if (value4)
		nat4_end(end, value4);
	return value4;
}

static __always_inline int nat_refusal(int reason)
{
	if (!reason)
		return 0;
	return reason == DROP_MAP_FULL ? REFUSE(DROP_MAP_FULL) : REFUSE(DROP_NAT_NO_MAPPING);
}

static __always_inline int nat4_packet(ctx_t *ctx, const struct packet *packet, struct nat_end *end)
{
	struct nat4_search search = { .ctx = ctx };
	union ct_key key;
	int reason;

	ct_key_of(&key, &packet->tuple, NAT_OUT, false);
	search.value.address = end->address[0];
	search.value.ifindex = ctx_ifindex(ctx);
	reason = nat4_source(&search, (void *)&key.v4, packet->tcp_flags);
	nat4_end(end, &search.value);
	return reason;
}

static __always_inline int nat6_packet(ctx_t *ctx, const struct packet *packet, struct nat_end *end)
{
	struct nat6_search search = { .ctx = ctx };
	union ct_key key;
	int reason;

	ct_key_of(&key, &packet->tuple, NAT_OUT, true);
	address_copy(search.value.address, end->address, true);
	search.value.ifindex = ctx_ifindex(ctx);
	reason = nat6_source(&search, (void *)&key.v6, packet->tcp_flags);
	nat6_end(end, &search.value);
	return reason;
}

/* The source for a packet of the node that leaves by a device with the address in end. An ICMP error
 * finds a flow and makes none. 0 or a refusal. */
static __always_inline int nat_source(ctx_t *ctx, const struct packet *packet, struct nat_end *end,
				      const bool v6)
{
	int reason;

	if (packet->flags & PACKET_ICMP_ERROR)
		return nat_find(&packet->tuple, NAT_OUT, end, v6) ? 0 : REFUSE(DROP_NAT_NO_MAPPING);
	reason = v6 ? nat6_packet(ctx, packet, end) : nat4_packet(ctx, packet, end);
	return nat_refusal(reason);
}

/* Note a packet of a client's flow, which is `to` behind the translation and has the source in end;
 * false: it needs another one. */
static __always_inline bool nat_keep(ctx_t *ctx, const struct packet *packet, const struct tuple *to,
				     const struct nat_end *end, const bool v6)
{
	return v6 ? nat6_keep(ctx, packet, to, end) : nat4_keep(ctx, packet, to, end);
}

/* A source for a client's flow: end comes with the address and the frontend that replies come from, and
 * gets the port. 0 or a refusal. */
static __always_inline int nat_take(ctx_t *ctx, const struct packet *packet, const struct tuple *to,
				    struct nat_end *end, const bool v6)
{
	return nat_refusal(v6 ? nat6_take_for_client(ctx, packet, to, end) :
				nat4_take_for_client(ctx, packet, to, end));
}

/* The client of a reply; false if the packet answers no translated flow. */
static __always_inline bool nat_reply(const struct packet *packet, struct nat_end *end,
				      const bool v6)
{
	const struct nat4_value *value4;
	const struct nat6_value *value6;
	union ct_key key;

	if (packet->flags & PACKET_ICMP_ERROR)
		return nat_find(&packet->tuple, NAT_IN, end, v6);
	ct_key_of(&key, &packet->tuple, NAT_IN, v6);
	if (v6) {
		value6 = nat6_reply((void *)&key.v6, packet->tcp_flags);
		if (value6)
			nat6_end(end, value6);
		return value6;
	}
	value4 = nat4_reply((void *)&key.v4, packet->tcp_flags);
	if (value4)
		nat4_end(end, value4);
	return value4;
}

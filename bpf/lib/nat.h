/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Source translation on tuples: who needs a source gets a free port of the node for this
 * destination, and the way back stands under the tuple of the replies (NAT_IN).
 *
 * A port is free if the reply's tuple could be inserted as NAT_IN and the node has no flow like it itself. A
 * fixed number of ports is looked at, at random: first for a free one, then also for one whose flow gives
 * it away (nat_yields). So a first packet costs the same whatever the range is and however full. Who finds
 * few wakes the collection of what expired (cilia_signal).
 *
 * What a client's flow got stands in its entry of connection tracking; that of a connection of the node
 * itself in a second entry here (NAT_OUT). Both entries of a flow have the same life time. What an LRU map
 * evicts of two is made anew while the other half is used. The text of both families is nat_family.h. */
#include "ct.h"
#include "nat_types.h"
#include "own_flow.h"
#include "switch.h"

/* Set before load. Ports that node ports do not use. */
const volatile __u32 nat_min_port = 32768;
const volatile __u32 nat_max_port = 65535;

#define CILIA_EEXIST 17

/* Another CPU translates the same flow at the same moment. */
#define NAT_RACED 1

/* Ports that are looked at for a flow. At 90 % use all but one in 30 find a free one. */
#define NAT_TRIES 32
/* After so many, a port that another flow gives away is taken, too. */
#define NAT_CHOICES 8
/* Ports that are looked at after several flows have found none: a flood to a full destination is to cost
 * little, and each flow that gets a port raises the number again. */
#define NAT_TRIES_FULL 8

static __u32 nat_tries = NAT_TRIES;

/* A handshake or an answer takes less; a client that is slower sends again and gets another port. */
#define NAT_UNANSWERED_S 2
/* Applications that keep a flow of datagrams alive are rarely silent for longer. */
#define NAT_SILENT_S 10

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);	/* a page where pages are large */
} cilia_signal SEC(".maps");

/* Time at which the last collection began, seconds: what had expired before is deleted by it, whoever has
 * the key by then, so nobody takes that over. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} cilia_nat_swept SEC(".maps");

static __always_inline bool nat_is_swept(__u32 expires_s)
{
	__u32 zero = 0, *swept_s = bpf_map_lookup_elem(&cilia_nat_swept, &zero);

	return !swept_s || (__s32)(expires_s - *swept_s) < 0;
}

/* The end that one side of a packet gets. */
struct nat_end {
	__be32 address[4];
	__u32 rev_nat;
	__be16 port;
	__u16 flags;		/* NAT_* */
	bool noted;		/* a reply changed the entry: at most once a second */
};

/* The frontend that a reply comes from. port 0: an earlier version wrote the entry. */
struct nat_frontend {
	__be32 address[4];
	__be16 port;
	__u16 pad;
};

/* TCP whose handshake is complete: answered, and the answer acknowledged. */
static __always_inline bool nat_established(__u16 flags)
{
	return (flags & (NAT_SEEN_REPLY | NAT_CONFIRMED)) == (NAT_SEEN_REPLY | NAT_CONFIRMED);
}

/* Seconds that both entries of a flow stay. As ct_lifetime_s has it for CT_SNAT. */
static __always_inline __u32 nat_lifetime_s(__u8 proto, __u16 flags)
{
	if (proto != IPPROTO_TCP)
		return ct_timeout_regular_any_s;
	if (flags & NAT_CLOSING)
		return ct_timeout_regular_tcp_fin_s;
	return nat_established(flags) ? ct_timeout_regular_tcp_s : ct_timeout_regular_tcp_syn_s;
}

/* Flags after one more packet, tcp_flags being 0 for other protocols. A new SYN takes a port that
 * was closing into use again. By direct return the opener's packets are not seen: a backend that goes on
 * after its SYN has got the acknowledgement. */
static __always_inline __u16 nat_flags_after(__u16 flags, __u8 tcp_flags, bool reply)
{
	if (reply)
		flags |= NAT_SEEN_REPLY;
	else if ((tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		flags &= ~(NAT_CLOSING | NAT_ORIGIN_FIN | NAT_REPLY_FIN | NAT_SEEN_REPLY |
			   NAT_CONFIRMED);
	if ((tcp_flags & TCP_ACK) && (!reply || ((flags & NAT_DSR) && !(tcp_flags & TCP_SYN))))
		flags |= NAT_CONFIRMED;
	if (tcp_flags & TCP_FIN)
		flags |= reply ? NAT_REPLY_FIN : NAT_ORIGIN_FIN;
	if ((tcp_flags & TCP_RST) ||
	    (flags & (NAT_ORIGIN_FIN | NAT_REPLY_FIN)) == (NAT_ORIGIN_FIN | NAT_REPLY_FIN))
		flags |= NAT_CLOSING;
	return flags;
}

/* How soon a flow gives its port to another one when free ones are rare, the larger the sooner: what
 * is over, then what nobody answered, then silent datagrams, and of each kind the oldest. 0: never. */
#define NAT_RANK(kind) ((kind) << 24)
#define NAT_EXPIRED NAT_RANK(4)

static __always_inline __u32 nat_yields(__u8 proto, __u16 flags, __u32 created_s, __u32 expires_s)
{
	__u32 now_s = ct_now_s();
	__s32 idle_s = now_s - (expires_s - nat_lifetime_s(proto, flags));

	if (!created_s)
		return 0;
	if (idle_s < 0)
		idle_s = 0;
	if (idle_s >= NAT_RANK(1))
		idle_s = NAT_RANK(1) - 1;
	if ((__s32)(expires_s - now_s) < 0)
		return nat_is_swept(expires_s) ? 0 : NAT_EXPIRED | idle_s;
	if (flags & NAT_CLOSING)
		return NAT_RANK(3) | idle_s;
	if (proto == IPPROTO_TCP ? !nat_established(flags) : !(flags & NAT_SEEN_REPLY))
		return idle_s >= NAT_UNANSWERED_S ? NAT_RANK(2) | idle_s : 0;
	return proto != IPPROTO_TCP && idle_s >= NAT_SILENT_S ? NAT_RANK(1) | idle_s : 0;
}

/* Whether another frontend's flow may have the tuple of an entry NAT_DSR: as ct_yields and ct_closing say of
 * a flow that this node was asked for. */
static __always_inline bool nat_dsr_yields(__u8 proto, __u16 flags, __u32 expires_s)
{
	return proto == IPPROTO_UDP || (flags & (NAT_CLOSING | NAT_ORIGIN_FIN | NAT_REPLY_FIN)) ||
	       (__s32)(expires_s - ct_now_s()) < 0;
}

/* Remember how the last search for a port ended. */
static __always_inline void nat_searched(bool found)
{
	__u32 tries = found ? NAT_TRIES : nat_tries / 2;

	if (tries < NAT_TRIES_FULL)
		tries = NAT_TRIES_FULL;
	if (nat_tries != tries)
		nat_tries = tries;
}

/* Wake who collects what expired. A full buffer means that it is awake. */
static __noinline void nat_signal(const __be32 *address, __be16 port, __u8 proto, bool refused,
				  bool v6)
{
	struct nat_pressure *record = bpf_ringbuf_reserve(&cilia_signal, sizeof(*record), 0);

	if (!record)
		return;
	__builtin_memset(record, 0, sizeof(*record));
	address_copy(record->address, address, v6);
	record->port = port;
	record->proto = proto;
	record->family = v6 ? 6 : 4;
	record->refused = refused;
	bpf_ringbuf_submit(record, 0);
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

/* The entry of a tuple as it stands; false if there is none. */
static __always_inline bool nat_find(const struct tuple *tuple, __u8 direction,
				     struct nat_end *end, const bool v6)
{
	union ct_key key;

	ct_key_of(&key, tuple, direction, v6);
	return v6 ? nat6_find((void *)&key.v6, end, NULL) : nat4_find((void *)&key.v4, end, NULL);
}

static __always_inline int nat_refusal(int reason)
{
	if (!reason)
		return 0;
	return reason == DROP_MAP_FULL ? REFUSE(DROP_MAP_FULL) : REFUSE(DROP_NAT_NO_MAPPING);
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

/* Until when a client's flow with the source in end, a port of the node, has `to` behind the translation of
 * its destination; 0: it has not. */
static __always_inline __u32 nat_kept_until(const struct tuple *asked, const struct tuple *to,
					    const struct nat_end *end, const bool v6)
{
	return v6 ? nat6_kept_until(asked, to, end) : nat4_kept_until(asked, to, end);
}

/* The client of a reply and the frontend that it asked; false if the packet answers no translated flow. */
static __always_inline bool nat_reply(const struct packet *packet, struct nat_end *end,
				      struct nat_frontend *frontend, const bool v6)
{
	union ct_key key;

	ct_key_of(&key, &packet->tuple, NAT_IN, v6);
	if (packet->flags & PACKET_ICMP_ERROR)
		return (v6 ? nat6_find((void *)&key.v6, end, frontend) :
			     nat4_find((void *)&key.v4, end, frontend)) &&
		       !(end->flags & NAT_ENDED);
	return v6 ? nat6_client_of((void *)&key.v6, packet->tcp_flags, end, frontend) :
		    nat4_client_of((void *)&key.v4, packet->tcp_flags, end, frontend);
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Packets to a backend's own address. Replies carry nothing by which to tell them from those to a client of
 * a service, so the tuple is one connection's: a direct one of TCP has an entry as those of services have,
 * without a frontend, and whoever comes second gets another source port. Of datagrams nothing tells the end:
 * the last one who spoke has the tuple.
 *
 *	CT_EGRESS	client -> backend, the connection's own or with the port that it got
 *	CT_SERVICE	client -> backend, only of one that got another port
 *
 * What a connection through a frontend sends while that is gone comes here, too.
 */
#include "lb_packet.h"

/* Seconds in which a frontend that was deleted may be made anew: whoever goes on with a connection to it is
 * not answered, for the stack would reset it. */
#define LB_RETURN_S 30

/* What is left of a service's flow goes. 0, or a refusal while that flow lives. */
static __always_inline int lb_direct_clear(const struct packet *packet, const struct ct_entry *entry,
					   const bool v6)
{
	__u32 now_s;

	if (!entry || !entry->rev_nat || (packet->flags & PACKET_ICMP_ERROR))
		return 0;
	now_s = ct_now_s();
	if (!ct_yields(entry, packet->tuple.proto, now_s) && ct_continues(entry, packet, now_s))
		return REFUSE(DROP_CT_COLLISION);
	ct_delete(&packet->tuple, CT_EGRESS, v6);
	return 0;
}

static __always_inline bool lb_direct_is_own(const struct ct_entry *entry)
{
	return entry && !entry->rev_nat && !(entry->flags & CT_OTHER_PORT);
}

/* Whether the connection has another port towards the backend. service: the entry of its tuple, or NULL. */
static __always_inline bool lb_direct_moved(const struct ct_entry *service, const struct packet *packet,
					    __u32 now_s)
{
	return service && !service->rev_nat && (service->flags & CT_OTHER_PORT) &&
	       ct_continues(service, packet, now_s);
}

/* Whether a packet goes on with a connection through a frontend that is gone, but may come back. Counted
 * from the first such packet. */
static __always_inline bool lb_direct_waits(struct ct_entry *service, const struct packet *packet,
					    __u32 now_s)
{
	if (!service || !service->rev_nat || packet_opens_tcp(packet) || ct_over(service, now_s) ||
	    (packet->flags & PACKET_ICMP_ERROR))
		return false;
	if ((__s32)(service->expires_s - now_s) > LB_RETURN_S)
		service->expires_s = now_s + LB_RETURN_S;
	return true;
}

/* Track a connection and give it the port that it has, or gets because its own is taken. flags: CT_NODE_PORT
 * at a device of the node. 0 or a refusal. */
static __always_inline int lb_direct_tcp(ctx_t *ctx, struct packet *packet, __u16 flags, const bool v6)
{
	const struct tuple *tuple = &packet->tuple;
	struct ct_entry *behind = ct_lookup(tuple, CT_EGRESS, v6);
	bool opens = packet_opens_tcp(packet);
	struct ct_new new = {
		.flags = flags,
		.direction = CT_EGRESS,
		.tcp_flags = packet->tcp_flags,
	};
	struct lb_asked asked = {};
	struct tuple to = *tuple;
	__be32 source[4];
	int refused;

	if (!lb_direct_is_own(behind))
		asked.service = ct_lookup(tuple, CT_SERVICE, v6);
	/* An answer of a workload, or a connection from before. One at a time: pointers are not combined. */
	if (!opens && !behind) {
		if (!asked.service) {
			packet->flags |= PACKET_STRAY;
			return 0;
		}
	}
	new.ifindex = ctx_ifindex(ctx);
	new.now_s = ct_now_s();
	if (lb_direct_is_own(behind) && ct_continues(behind, packet, new.now_s)) {
		ct_seen(ctx, behind, packet, false, false, new.now_s);
		return 0;
	}
	if (lb_direct_waits(asked.service, packet, new.now_s))
		return REFUSE(DROP_NO_SERVICE);
	asked.continues = lb_direct_moved(asked.service, packet, new.now_s);
	if (asked.continues) {
		lb_keep_port(&to, &asked);
		behind = ct_lookup(&to, CT_EGRESS, v6);
	} else if (!opens || (packet->flags & PACKET_ICMP_ERROR)) {
		return lb_direct_clear(packet, behind, v6);
	} else if (lb_taken(packet, behind, &to, &new)) {
		behind = lb_other_port(&to, new.now_s, v6);
		if (to.sport == tuple->sport)
			return REFUSE(DROP_CT_COLLISION);
	} else {
		/* Without an entry it is as good, as long as nobody asks a service from its port. */
		flow_note_new(packet);
		ct_create(tuple, &new, v6);
		return 0;
	}
	refused = lb_track_both(ctx, packet, &asked, behind, &to, &new, NULL, v6);
	if (refused)
		return refused;
	address_copy(source, tuple->saddr, true);
	return packet_set_source(ctx, packet, source, to.sport, v6);
}

static __always_inline int lb_direct(ctx_t *ctx, struct packet *packet, __u16 flags, const bool v6)
{
	struct ct_entry *entry;
	__u32 now_s;

	if (packet->tuple.proto == IPPROTO_TCP && !(packet->flags & PACKET_FRAGMENT))
		return lb_direct_tcp(ctx, packet, flags, v6);
	entry = ct_lookup(&packet->tuple, CT_EGRESS, v6);
	if (!lb_direct_is_own(entry) || (flags & CT_NODE_PORT))
		return lb_direct_clear(packet, entry, v6);
	/* A flow of a workload (flow.h). */
	now_s = ct_now_s();
	if (ct_continues(entry, packet, now_s))
		ct_seen(ctx, entry, packet, false, false, now_s);
	return 0;
}

/* What a backend answers to a direct connection: to the port that the client has. 0 or a refusal. */
static __always_inline int lb_direct_answer(ctx_t *ctx, struct packet *packet, struct ct_entry *entry,
					    const bool v6)
{
	__be32 client[4];

	ct_seen(ctx, entry, packet, true, false, ct_now_s());
	if (!(entry->flags & CT_OTHER_PORT))
		return 0;
	address_copy(client, packet->tuple.daddr, true);
	return packet_set_destination(ctx, packet, client, entry->nat_port, v6);
}

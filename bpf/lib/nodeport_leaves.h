/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What leaves by a device of the node: replies of its backends, and its own connections from ports that
 * clients' flows have. */
#include "nodeport_dsr.h"

/* Whether answers to this packet of the node would be taken for those to a client's flow. The first
 * packet of a connection tells; later ones have an entry then. */
static __always_inline bool nodeport_collides(ctx_t *ctx, const struct packet *packet,
					      struct nat_end *end, const bool v6)
{
	__u16 port = bpf_ntohs(packet->tuple.sport);
	const struct netdev *netdev;
	struct tuple reply = {};
	struct nat_end taken;

	if (port < nat_min_port || port > nat_max_port || (packet->flags & PACKET_ICMP_ERROR))
		return false;
	if (packet->tuple.proto == IPPROTO_TCP && !packet_opens_tcp(packet))
		return false;
	netdev = netdev_find(ctx_ifindex(ctx));
	if (!netdev)
		return false;
	if (v6)
		address_copy(end->address, netdev->address6, true);
	else
		end->address[0] = netdev->address4;
	if (!address_equal(end->address, packet->tuple.saddr, v6))
		return false;
	tuple_exchange(&reply, &packet->tuple);
	return nat_find(&reply, NAT_IN, &taken, v6);
}

/* A reply of a backend of this node, where it leaves; or a packet of the node itself from a port that
 * a client's flow has: it gets another one, or the answers would go to the client. */
static __always_inline int nodeport_leaves(ctx_t *ctx, struct packet *packet, const bool v6)
{
	struct ct_entry *entry = ct_lookup_reply(packet, CT_EGRESS, v6);
	struct nat_end end = {};
	int refused;

	if (entry && (entry->flags & CT_NODE_PORT))
		return entry->rev_nat ? lb_reverse(ctx, packet, entry, v6) :
					lb_direct_answer(ctx, packet, entry, v6);
	if (nat_find(&packet->tuple, NAT_OUT, &end, v6)) {
		if ((end.flags & NAT_DSR) && !(packet->flags & PACKET_ICMP_ERROR))
			nodeport_dsr_note(&packet->tuple, packet->tcp_flags, true, v6);
	} else if (!nodeport_collides(ctx, packet, &end, v6)) {
		return NODEPORT_PASS;
	}
	if (!(end.flags & NAT_DSR)) {
		refused = nat_source(ctx, packet, &end, v6);
		if (refused)
			return refused;
	}
	return packet_set_source(ctx, packet, end.address, end.port, v6);
}

PER_FAMILY(nodeport_leaves, NODEPORT_PASS)

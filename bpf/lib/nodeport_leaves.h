/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What leaves by a device of the node: replies of its backends, its own connections from ports that clients'
 * flows have, and what its workloads send to the world. */
#include "masquerade.h"
#include "nodeport_dsr.h"

/* The address that packets leave a device with; false if it has none of the family. */
static __always_inline bool nodeport_device_address(ctx_t *ctx, struct nat_end *end, const bool v6)
{
	const struct netdev *netdev = netdev_find(ctx_ifindex(ctx));

	if (!netdev)
		return false;
	if (v6)
		address_copy(end->address, netdev->address6, true);
	else
		end->address[0] = netdev->address4;
	return v6 ? end->address[0] | end->address[1] | end->address[2] | end->address[3] :
		    end->address[0];
}

/* Whether answers to this packet of the node would be taken for those to a client's flow. The first
 * packet of a connection tells; later ones have an entry then. reply: the tuple of answers. */
static __always_inline bool nodeport_collides(ctx_t *ctx, const struct packet *packet,
					      const struct tuple *reply, struct nat_end *end,
					      const bool v6)
{
	__u16 port = bpf_ntohs(packet->tuple.sport);
	struct nat_end taken;

	if (port < nat_min_port || port > nat_max_port || (packet->flags & PACKET_ICMP_ERROR))
		return false;
	if (packet->tuple.proto == IPPROTO_TCP && !packet_opens_tcp(packet))
		return false;
	if (!nodeport_device_address(ctx, end, v6) ||
	    !address_equal(end->address, packet->tuple.saddr, v6))
		return false;
	return nat_find(reply, NAT_IN, &taken, v6);
}

/* The address of the node that a packet without a translation gets, if it is to have one: 0 with it in *end,
 * NODEPORT_PASS, or a refusal. */
static __always_inline int nodeport_own_source(ctx_t *ctx, const struct packet *packet,
					       const struct tuple *reply, struct nat_end *end,
					       const bool v6)
{
	if (!masquerade(v6) || !masquerade_concerns(ctx, packet, v6))
		return nodeport_collides(ctx, packet, reply, end, v6) ? 0 : NODEPORT_PASS;
	if (masquerade_answers(reply, v6))
		return NODEPORT_PASS;
	if (packet->flags & PACKET_NO_PORTS)
		return REFUSE(DROP_FRAG_NOT_FOUND);
	return nodeport_device_address(ctx, end, v6) ? 0 : REFUSE(DROP_NO_SOURCE);
}

/* A reply of a backend of this node, where it leaves; or a packet of the node itself from a port that
 * a client's flow has: it gets another one, or the answers would go to the client; or a packet of a
 * workload to the world. */
static __always_inline int nodeport_leaves(ctx_t *ctx, struct packet *packet,
					   struct nodeport_plan *plan, const bool v6)
{
	struct nat_end *end = &plan->source;
	struct ct_entry *entry;
	int refused;

	if (masquerade(v6) && (packet->flags & PACKET_ICMP_ERROR) &&
	    masquerade_foreign_error(ctx, packet, v6))
		return REFUSE(DROP_NAT_NO_MAPPING);
	tuple_exchange(&plan->to, &packet->tuple);
	entry = ct_lookup(&plan->to, CT_EGRESS, v6);
	if (entry && (entry->flags & CT_NODE_PORT))
		return entry->rev_nat ? lb_reverse(ctx, packet, entry, v6) :
					lb_direct_answer(ctx, packet, entry, v6);
	*end = (struct nat_end){};
	if (nat_find(&packet->tuple, NAT_OUT, end, v6)) {
		flow_note_known(packet, end->flags & NAT_DSR, packet->tcp_flags & monitor_flags);
		if ((end->flags & NAT_DSR) && !(packet->flags & PACKET_ICMP_ERROR))
			nodeport_dsr_note(&packet->tuple, packet->tcp_flags, true, v6);
	} else {
		refused = nodeport_own_source(ctx, packet, &plan->to, end, v6);
		if (refused)
			return refused;
		flow_note_new(packet);
	}
	if (!(end->flags & NAT_DSR)) {
		refused = nat_source(ctx, packet, end, v6);
		if (refused)
			return refused;
	}
	return packet_set_source(ctx, packet, end->address, end->port, v6);
}

PER_FAMILY_WITH(nodeport_leaves, struct nodeport_plan, NODEPORT_PASS)

/* What has no tuple, or a broken one: the node's own concern, unless a workload sends it to the world. 0 or a
 * refusal; parsed: what packet_parse said. */
static __always_inline int nodeport_leaves_other(ctx_t *ctx, const struct packet *packet, int parsed)
{
	bool v6 = ctx_protocol(ctx) == bpf_htons(ETH_P_IPV6);

	if (!v6 && ctx_protocol(ctx) != bpf_htons(ETH_P_IP))
		return 0;
	if (!masquerade(v6) || !masquerade_concerns(ctx, packet, v6))
		return 0;
	return parsed == PACKET_OTHER ? REFUSE(DROP_NAT_PROTOCOL) : parsed;
}

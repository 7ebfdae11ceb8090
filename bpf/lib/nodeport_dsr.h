/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Clients of other nodes at a device of this one, where the backend is: packets that bring their
 * frontend in an option, or travel inside another packet. The backend's replies get the frontend as
 * their source where they leave (nodeport_leaves.h). Not for XDP: what arrives goes to the stack. */
#include "nodeport.h"

/* Find the frontend that another node was asked for with a packet, which has the tuple: one that this node
 * has too, or a node port, and the address is a node's. 0 with asked->svc, NODEPORT_PASS, or a refusal: the
 * client is let in as one that asks here. */
static __noinline int nodeport_dsr_admit(ctx_t *ctx, const struct tuple *tuple, struct lb_asked *asked,
					 bool v6)
{
	asked->svc = lb_lookup(&asked->key, tuple, true, v6);
	asked->other_node = !asked->svc;
	if (asked->svc)
		return lb_admit(ctx, asked->svc, tuple, true, v6);
	asked->svc = lb_node_port(&asked->key, tuple, true, v6);
	if (!asked->svc)
		return REFUSE(DROP_UNKNOWN_FRONTEND);
	return lb_source_allowed(asked->svc, tuple, v6) ? 0 : REFUSE(DROP_NOT_IN_SRC_RANGE);
}

/* Remember the frontend that is the source of these replies. A connection keeps the one that it has. 0 or a
 * refusal. */
static __noinline int nodeport_dsr_keep(const struct tuple *reply, const __be32 *address, __be16 port,
					bool v6)
{
	__u32 now_s = ct_now_s();
	struct nat4_value *held4;
	struct nat6_value *held6;
	union ct_key key;
	int error;

	ct_key_of(&key, reply, NAT_OUT, v6);
	if (v6) {
		struct nat6_value value = { .port = port, .flags = NAT_DSR, .created_s = now_s };

		held6 = bpf_map_lookup_elem(&cilia_snat6, &key);
		if (held6 && (held6->flags & NAT_DSR) &&
		    !(held6->port == port && address_equal(held6->address, address, true)) &&
		    !nat_dsr_yields(reply->proto, held6->flags, held6->expires_s))
			return REFUSE(DROP_CT_COLLISION);
		address_copy(value.address, address, true);
		value.expires_s = now_s + nat_lifetime_s(reply->proto, 0);
		error = bpf_map_update_elem(&cilia_snat6, &key, &value, BPF_ANY);
	} else {
		struct nat4_value value = {
			.address = *address,
			.port = port,
			.flags = NAT_DSR,
			.created_s = now_s,
			.expires_s = now_s + nat_lifetime_s(reply->proto, 0),
		};

		held4 = bpf_map_lookup_elem(&cilia_snat4, &key);
		if (held4 && (held4->flags & NAT_DSR) &&
		    !(held4->port == port && held4->address == *address) &&
		    !nat_dsr_yields(reply->proto, held4->flags, held4->expires_s))
			return REFUSE(DROP_CT_COLLISION);
		error = bpf_map_update_elem(&cilia_snat4, &key, &value, BPF_ANY);
	}
	return error ? REFUSE(DROP_MAP_FULL) : 0;
}

/* Note a packet of either side in the entry of the replies, which have the tuple: at most a write a second,
 * unless the state changes. */
static __noinline void nodeport_dsr_note(const struct tuple *reply, __u8 tcp_flags, bool answers, bool v6)
{
	struct nat4_value *value4;
	struct nat6_value *value6;
	union ct_key key;

	ct_key_of(&key, reply, NAT_OUT, v6);
	if (v6) {
		value6 = bpf_map_lookup_elem(&cilia_snat6, &key);
		if (value6 && (value6->flags & NAT_DSR))
			nat6_note(value6, reply->proto, tcp_flags, answers);
		return;
	}
	value4 = bpf_map_lookup_elem(&cilia_snat4, &key);
	if (value4 && (value4->flags & NAT_DSR))
		nat4_note(value4, reply->proto, tcp_flags, answers);
}

/* What another flow of the tuple left goes. 0, or a refusal while that one lives: the client's port stays. */
static __always_inline int nodeport_dsr_clear(const struct packet *packet, const bool v6)
{
	const struct ct_entry *entry = ct_lookup(&packet->tuple, CT_EGRESS, v6);

	if (lb_direct_is_own(entry) && !ct_over(entry, ct_now_s()))
		return REFUSE(DROP_CT_COLLISION);
	return lb_direct_clear(packet, entry, v6);
}

/* A packet that brings its frontend: remember it for the replies, in place of what an older flow through a
 * frontend of this node left. One that opens a connection and brings none was sent to the backend itself;
 * of datagrams, each one opens. What ends a connection brings none either, nor what continues one, which is
 * why its tuple cannot be shared. */
static __always_inline int nodeport_dsr_arrives(ctx_t *ctx, const struct packet *packet,
						struct nodeport_fate *fate, const bool v6)
{
	struct lb_asked asked = {};
	__be32 address[4] = {};
	struct tuple tuple;
	__be16 port;
	int refused;

	if (!nodeport_dsr || (packet->flags & PACKET_ICMP_ERROR))
		return NODEPORT_PASS;
	if (dsr_read(ctx, packet, address, &port, v6)) {
		if (packet->flags & PACKET_LATER)
			return dsr_remove(ctx, packet, v6);
		tuple = packet->tuple;
		address_copy(tuple.daddr, address, v6);
		tuple.dport = port;
		refused = nodeport_dsr_admit(ctx, &tuple, &asked, v6);
		if (!refused)
			refused = nodeport_dsr_clear(packet, v6);
		if (refused)
			return refused;
		tuple_exchange(&tuple, &packet->tuple);
		refused = nodeport_dsr_keep(&tuple, address, port, v6);
		return refused ? refused : dsr_remove(ctx, packet, v6);
	}
	if (packet->flags & PACKET_LATER)
		return NODEPORT_PASS;
	if (packet_opens_tcp(packet) || packet->tuple.proto == IPPROTO_UDP)
		return nodeport_dsr_has(&packet->tuple, v6) ? REFUSE(DROP_CT_COLLISION) :
							      NODEPORT_PASS;
	if (packet->tcp_flags & (TCP_FIN | TCP_RST)) {
		tuple_exchange(&tuple, &packet->tuple);
		nodeport_dsr_note(&tuple, packet->tcp_flags, false, v6);
	}
	return NODEPORT_PASS;
}

PER_FAMILY_WITH(nodeport_dsr_arrives, struct nodeport_fate, NODEPORT_PASS)

/* The backend of a frontend that has an address: slots are gone through in turn. */
struct nodeport_scan {
	union lb_key key;
	__be32 address[4];
	struct lb_target target;
	bool v6;
	bool found;
};

static __always_inline bool nodeport_scan_entry(__u32 turn, struct nodeport_scan *scan, const bool v6)
{
	const struct lb_service *slot;

	lb_key_slot(&scan->key, turn + 1, v6);
	slot = lb_entry(&scan->key, v6);
	return slot && lb_target(&scan->target, slot->backend_id, v6) &&
	       address_equal(scan->target.address, scan->address, v6);
}

static long nodeport_scan_slot(__u32 turn, struct nodeport_scan *scan)
{
	scan->found = scan->v6 ? nodeport_scan_entry(turn, scan, true) :
				 nodeport_scan_entry(turn, scan, false);
	return scan->found;
}

/* The backend at an address that a packet to a frontend was sent to by another node: that of its
 * connection, or the slot's. */
static __always_inline bool nodeport_chosen(struct nodeport_scan *scan,
					    const struct lb_service *svc,
					    const struct ct_entry *entry, const bool v6)
{
	__u32 slots = svc->count + svc->qcount;

	if (entry && entry->rev_nat == svc->rev_nat &&
	    lb_target(&scan->target, entry->backend_id, v6) &&
	    address_equal(scan->target.address, scan->address, v6))
		return true;
	scan->v6 = v6;
	bpf_loop(slots, nodeport_scan_slot, scan, 0);
	return scan->found;
}

/* A client's packet inside one that another node addressed to the backend. 0, NODEPORT_PASS or a
 * refusal; the packet goes on to the stack. Each one names its frontend, so that two frontends which a client
 * asks from one port get each a port of their own, as those of this node do. */
static __always_inline int nodeport_unwrap(ctx_t *ctx, const struct packet *outer,
					   struct nodeport_plan *plan, const bool v6)
{
	struct lb_decision *decision = &plan->decision;
	struct ct_new *new = &plan->new;
	struct nodeport_scan scan = {};
	struct lb_asked asked = {};
	struct ct_entry *behind;
	struct packet packet;
	int refused;

	if (!nodeport_dsr || nodeport_dispatch != DISPATCH_IPIP ||
	    !ipip_inner(ctx, outer, &packet, v6))
		return NODEPORT_PASS;
	refused = nodeport_dsr_admit(ctx, &packet.tuple, &asked, v6);
	if (!asked.svc)
		return NODEPORT_PASS;
	if (!cluster_node_is_other(outer->tuple.saddr, v6))
		return REFUSE(DROP_NOT_FROM_NODE);
	if (refused)
		return refused;
	asked.service = ct_lookup(&packet.tuple, CT_SERVICE, v6);
	scan.key = asked.key;
	address_copy(scan.address, outer->tuple.daddr, v6);
	if (!nodeport_chosen(&scan, asked.svc, asked.service, v6))
		return NODEPORT_PASS;
	*new = (struct ct_new){
		.ifindex = ctx_ifindex(ctx),
		.now_s = ct_now_s(),
		.flags = CT_NODE_PORT | CT_DSR | (asked.other_node ? CT_OTHER_NODE : 0),
		.tcp_flags = packet.tcp_flags,
		.rev_nat = asked.svc->rev_nat,
		.backend_id = scan.target.id,
	};
	decision->target = scan.target;
	decision->hairpin = false;
	asked.continues = asked.service && ct_continues(asked.service, &packet, new->now_s);
	lb_translated(&plan->to, &packet.tuple, &decision->target, true, v6);
	lb_keep_port(&plan->to, &asked);
	/* A connection that goes on under other numbers gets another entry, with the port that it has. */
	if (asked.continues && (asked.service->rev_nat != new->rev_nat ||
				asked.service->backend_id != new->backend_id))
		asked.continues = false;
	behind = ct_lookup(&plan->to, CT_EGRESS, v6);
	if (lb_taken(&packet, behind, &plan->to, new)) {
		asked.continues = false;
		refused = nodeport_other_port(&packet, &plan->to, &behind, new->now_s, v6);
		if (refused)
			return refused;
	}
	decision->sport = plan->to.sport;
	if (!(packet.flags & PACKET_ICMP_ERROR) || asked.continues) {
		refused = lb_track_both(ctx, &packet, &asked, behind, &plan->to, new, NULL, v6);
		if (refused)
			return refused;
	}
	flow_note(outer, packet.flow_state, packet.flow_changes);
	refused = ipip_unwrap(ctx, outer, &packet);
	return refused ? refused : lb_translate(ctx, &packet, decision, v6);
}

PER_FAMILY_WITH(nodeport_unwrap, struct nodeport_plan, NODEPORT_PASS)

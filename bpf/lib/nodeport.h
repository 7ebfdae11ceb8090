/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Services asked from outside, at a device of the node:
 *
 *	backend on this node	the destination is translated, the stack does the rest; the reply gets the
 *				frontend as its source where it leaves (nodeport_leaves.h)
 *	elsewhere, snat		the source becomes the node's too; the reply comes back here. Two entries are
 *				the whole state: the client's own (CT_SERVICE) and the reply's (NAT_IN)
 *	elsewhere, dsr		the client's address stays; the backend's node answers in the frontend's name
 *
 * Direct return is for clients outside and for frontends that the backend's node knows: a client that is a
 * node may be the backend's own, which would be answered past its devices; a node port is known at the
 * addresses of Node objects. Everything else is translated (snat), also a flow whose ports another one of
 * the client has at this backend. A connection stays as it began.
 *
 * XDP does what ends in sending a packet to a known neighbour, and leaves everything else to tc as it
 * came: no packet is translated twice. */
#include "dsr.h"
#include "forward.h"
#include "icmp.h"
#include "ipip.h"
#include "lb_direct.h"
#include "nat.h"
#include "rewrite_ends.h"
#include "trace.h"

/* Set before load. Whether packets that bring their frontend are accepted; how they carry it. */
const volatile bool nodeport_dsr = false;
const volatile __u8 nodeport_dispatch = 0;

#define DISPATCH_OPT 0
#define DISPATCH_IPIP 1

#define IPV6_LEAST_MTU 1280

/* Not ours: the stack or whoever is next. */
#define NODEPORT_PASS 1

#ifdef CILIA_XDP
#define in_xdp true
#else
#define in_xdp false
#endif

/* A packet and what is decided about it. It is in a map, for the stack has no room for it; nothing
 * interrupts a program of these hooks to run another one of them on the same CPU. */
struct nodeport_plan {
	struct packet packet;
	struct lb_decision decision;
	struct route route;
	struct tuple to;	/* the packet's behind the translation of its destination */
	struct ct_new new;
	struct nat_end source;
	struct nat_frontend frontend;	/* of a reply */
	struct packet_ends ends;
	__s32 way;		/* ROUTE_* or a refusal */
	__u16 growth;
	bool direct;		/* the backend's node answers the client */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct nodeport_plan);
	__uint(max_entries, 1);
} cilia_np_plan SEC(".maps");

static __always_inline struct nodeport_plan *nodeport_plan(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cilia_np_plan, &zero);
}

/* Whether a backend of another node answers the client itself. */
static __always_inline bool nodeport_is_direct(const struct packet *packet,
					       const struct lb_asked *asked, const bool v6)
{
	if (!nodeport_dsr)
		return false;
	if (asked->continues)
		return !(asked->service->flags & CT_SNAT);
	if (!(asked->svc->flags & LB_SVC_DSR) || cluster_node(packet->tuple.saddr, v6))
		return false;
	return asked->svc->type != LB_TYPE_NODE_PORT || cluster_node(packet->tuple.daddr, v6);
}

/* The way to the backend, and how much longer the packet becomes. */
static __always_inline int nodeport_way(ctx_t *ctx, struct packet *packet, struct nodeport_plan *plan,
					bool continues, const bool v6)
{
	__u16 length = route_length(ctx, packet);

	plan->growth = 0;
	if (plan->direct)
		plan->growth = nodeport_dispatch == DISPATCH_IPIP ? ipip_growth(v6) :
								    dsr_growth(packet, continues, v6);
	if (v6 && plan->growth && !continues && length < IPV6_LEAST_MTU)
		length = IPV6_LEAST_MTU;
	return route_find(ctx, &plan->route, packet->tuple.saddr, plan->decision.target.address,
			  length + plan->growth, v6);
}

/* Whether the way allows a new flow to be answered directly. IP in IP is taken from nodes alone, so its
 * source must be one that the others know this one by. And 1280 bytes of IPv6 have to get through, for no
 * client cuts what is shorter (RFC 8200 5, RFC 8201 4). */
static __always_inline bool nodeport_allows_direct(const struct nodeport_plan *plan, int way,
						   const bool v6)
{
	if (nodeport_dispatch == DISPATCH_IPIP && !cluster_node(plan->route.address, v6))
		return false;
	return !v6 || way >= 0 || refusal_reason(way) != DROP_FRAG_NEEDED ||
	       plan->route.fib.mtu_result >= IPV6_LEAST_MTU + plan->growth;
}

static __always_inline const __be32 *nodeport_next_hop(const struct nodeport_plan *plan, const bool v6)
{
	return v6 ? (const __be32 *)plan->route.fib.ipv6_dst : &plan->route.fib.ipv4_dst;
}

/* Whether nothing tells where the backend of an open connection was: an earlier version made the entry. */
static __always_inline bool nodeport_lacks_place(const struct ct_entry *entry)
{
	return !(entry->flags & (CT_LOCAL | CT_SNAT)) && !entry->nat_address[0];
}

/* Whether the node of the backend of an open connection may not know the frontend: the backend's address
 * moved, and each packet tells it, for any of them may be lost; or its place was never noted. */
static __always_inline bool nodeport_must_name(const struct packet *packet, const struct nodeport_plan *plan,
					       const struct lb_asked *asked, int way, const bool v6)
{
	const struct ct_entry *entry = asked->service;

	if (!nodeport_dsr || nodeport_dispatch != DISPATCH_OPT || packet->tuple.proto != IPPROTO_TCP)
		return false;
	if (!plan->direct || !asked->continues || way < 0 || way == ROUTE_STACK || !plan->route.outside)
		return false;
	if ((entry->flags & CT_LOCAL) || nodeport_lacks_place(entry))
		return true;
	return !address_equal(entry->nat_address, nodeport_next_hop(plan, v6), v6);
}

/* Note where the backend of an open connection is, if an earlier version did not: its node was told the
 * frontend by this packet. */
static __always_inline void nodeport_note_place(const struct packet *packet, struct nodeport_plan *plan,
						const struct lb_asked *asked, const __be32 *next_hop,
						const bool v6)
{
	struct ct_entry *entry = asked->service;

	if (!nodeport_dsr || !asked->continues || (packet->flags & PACKET_ICMP_ERROR) ||
	    !nodeport_lacks_place(entry))
		return;
	if (!next_hop)
		entry->flags |= CT_LOCAL;
	else if (plan->growth)
		address_copy(entry->nat_address, next_hop, v6);
}

/* A function of its own, because the stack of the calls from the device to the choice of a port is full. */
static __noinline int nodeport_route(ctx_t *ctx, struct packet *packet, struct nodeport_plan *plan,
				     const struct lb_asked *asked, bool v6)
{
	int way = nodeport_way(ctx, packet, plan, asked->continues, v6);

	if (nodeport_must_name(packet, plan, asked, way, v6)) {
		way = nodeport_way(ctx, packet, plan, false, v6);
		if (way >= 0 || !nodeport_lacks_place(asked->service))
			return way;
		/* A shorter one will have room for it. */
		return nodeport_way(ctx, packet, plan, true, v6);
	}
	if (!plan->direct || asked->continues || !plan->route.outside ||
	    nodeport_allows_direct(plan, way, v6))
		return way;
	plan->direct = false;
	return nodeport_way(ctx, packet, plan, false, v6);
}

/* Whether the packet leaves the node for its backend, by a device that leads to other nodes. */
static __always_inline bool nodeport_leads_out(const struct nodeport_plan *plan)
{
	return plan->way != ROUTE_STACK && plan->route.outside;
}

/* Find the source of a client's flow, or take one. An entry of a connection that is over still has its
 * port, which the next one gets if it is the same backend's. 0 or a refusal. */
static __always_inline int nodeport_source(ctx_t *ctx, struct packet *packet,
					   struct nodeport_plan *plan, const struct lb_asked *asked,
					   const bool v6)
{
	struct ct_entry *entry = asked->service;
	struct ct_new *new = &plan->new;
	struct nat_end *source = &plan->source;
	bool held = entry && (entry->flags & CT_SNAT) && entry->rev_nat == new->rev_nat &&
		    entry->backend_id == new->backend_id;
	int refused;

	source->rev_nat = new->rev_nat;
	if (held) {
		address_copy(source->address, entry->nat_address, v6);
		source->port = entry->nat_port;
	}
	if (packet->flags & PACKET_ICMP_ERROR)
		return held ? 0 : REFUSE(DROP_NAT_NO_MAPPING);
	if (held && asked->continues &&
	    !ct_seen(ctx, entry, packet, false, true, new->now_s))
		return 0;
	if (held && nat_keep(ctx, packet, &plan->to, source, v6)) {
		if (asked->continues)
			return 0;
	} else {
		address_copy(source->address, plan->route.address, v6);
		if (!source->address[0])
			return REFUSE(DROP_NO_SOURCE);
		refused = nat_take(ctx, packet, &plan->to, source, v6);
		if (refused)
			return refused;
	}
	new->direction = CT_SERVICE;
	new->flags |= CT_SNAT;
	flow_note_new(packet);
	return ct_create_snat(&packet->tuple, new, source->address, source->port, v6);
}

/* Whether a flow that another node was asked for has the tuple (of a packet to the backend); one that may be
 * replaced is forgotten. Replies carry nothing else by which to tell whose they are. */
static __noinline bool nodeport_dsr_has(const struct tuple *to, bool v6)
{
	struct tuple reply = {};
	struct nat4_value *value4;
	struct nat6_value *value6;
	union ct_key key;

	tuple_exchange(&reply, to);
	ct_key_of(&key, &reply, NAT_OUT, v6);
	if (v6) {
		value6 = bpf_map_lookup_elem(&cilia_snat6, &key);
		if (!value6 || !(value6->flags & NAT_DSR))
			return false;
		if (!nat_dsr_yields(to->proto, value6->flags, value6->expires_s))
			return true;
		bpf_map_delete_elem(&cilia_snat6, &key);
		return false;
	}
	value4 = bpf_map_lookup_elem(&cilia_snat4, &key);
	if (!value4 || !(value4->flags & NAT_DSR))
		return false;
	if (!nat_dsr_yields(to->proto, value4->flags, value4->expires_s))
		return true;
	bpf_map_delete_elem(&cilia_snat4, &key);
	return false;
}

/* Whether the tuple of a packet to a backend of this node is another flow's. behind: the entry of that tuple,
 * or NULL. */
static __always_inline bool nodeport_taken(const struct packet *packet,
					   const struct nodeport_plan *plan,
					   const struct lb_asked *asked,
					   const struct ct_entry *behind, const bool v6)
{
	if (lb_taken(packet, behind, &plan->to, &plan->new))
		return true;
	if (in_xdp || !nodeport_dsr || nodeport_dispatch == DISPATCH_IPIP ||
	    nodeport_leads_out(plan) || (packet->flags & PACKET_ICMP_ERROR))
		return false;
	return !(asked->continues && behind) && nodeport_dsr_has(&plan->to, v6);
}

/* Give a client another port, because the backend has another flow with its own. 0 with the entry there in
 * *behind, or a refusal. */
static __always_inline int nodeport_other_port(const struct packet *packet, struct tuple *to,
					       struct ct_entry **behind, __u32 now_s, const bool v6)
{
	if (!lb_may_change_port(packet))
		return REFUSE(DROP_CT_COLLISION);
	to->sport = packet->tuple.sport;
	*behind = lb_other_port(to, now_s, v6);
	return to->sport == packet->tuple.sport ? REFUSE(DROP_CT_COLLISION) : 0;
}

/* Decide for a packet: 0 with the plan, NODEPORT_PASS, or a refusal. */
static __always_inline int nodeport_resolve(ctx_t *ctx, struct packet *packet,
					    struct nodeport_plan *plan, const bool v6)
{
	struct lb_decision *decision = &plan->decision;
	struct ct_new *new = &plan->new;
	struct lb_asked asked;
	const __be32 *next_hop = NULL;
	struct ct_entry *behind;
	int done, tries;

	*new = (struct ct_new){
		.ifindex = ctx_ifindex(ctx),
		.now_s = ct_now_s(),
		.flags = CT_NODE_PORT,
		.tcp_flags = packet->tcp_flags,
	};
	done = lb_find(ctx, packet, &asked, decision, new->now_s, true, v6);
	if (done)
		return done;
	new->rev_nat = decision->rev_nat;
	plan->direct = nodeport_is_direct(packet, &asked, v6);
	for (tries = 0; tries <= LB_CHOICES; tries++) {
		if (!lb_pick(&asked, decision, &packet->tuple, tries, v6))
			return REFUSE(DROP_NO_BACKEND);
		new->backend_id = decision->target.id;
		plan->way = nodeport_route(ctx, packet, plan, &asked, v6);
		if (plan->way < 0)
			return plan->way;
		if (in_xdp && (plan->way != ROUTE_OUT || !plan->route.outside))
			return NODEPORT_PASS;
		lb_translated(&plan->to, &packet->tuple, &decision->target, true, v6);
		if (nodeport_leads_out(plan) && !plan->direct)
			return nodeport_source(ctx, packet, plan, &asked, v6);
		lb_keep_port(&plan->to, &asked);
		behind = ct_lookup(&plan->to, CT_EGRESS, v6);
		if (!nodeport_taken(packet, plan, &asked, behind, v6))
			break;
		asked.continues = false;
		if (tries < LB_CHOICES - 1)
			continue;
		if (!nodeport_leads_out(plan)) {
			done = nodeport_other_port(packet, &plan->to, &behind, new->now_s, v6);
			if (done)
				return done;
			break;
		}
		/* By direct return the backend's node answers the client at the port it has. */
		plan->direct = false;
	}
	if (tries > LB_CHOICES)
		return REFUSE(DROP_CT_COLLISION);
	if (nodeport_leads_out(plan))
		next_hop = nodeport_next_hop(plan, v6);
	else
		new->flags |= CT_LOCAL;
	done = lb_track_both(ctx, packet, &asked, behind, &plan->to, new, next_hop, v6);
	if (!done)
		nodeport_note_place(packet, plan, &asked, next_hop, v6);
	return done;
}

PER_FAMILY_WITH(nodeport_resolve, struct nodeport_plan, NODEPORT_PASS)

/* The backend becomes the destination and the node the source. */
static __always_inline int nodeport_snat(ctx_t *ctx, struct packet *packet,
					 struct nodeport_plan *plan, const bool v6)
{
	struct packet_ends *ends = &plan->ends;

	address_copy(ends->source.word, plan->source.address, v6);
	address_copy(ends->destination.word, plan->decision.target.address, v6);
	ends->sport = plan->source.port;
	ends->dport = plan->decision.target.port;
	return packet_forward(ctx, packet, ends, v6);
}

/* The packet to the backend's node with the client's source. An ICMP error of a client brings no
 * frontend: what it quotes has one already. */
static __always_inline int nodeport_direct(ctx_t *ctx, struct packet *packet,
					   struct nodeport_plan *plan, const bool v6)
{
	const struct lb_target *target = &plan->decision.target;
	__be16 port = packet->tuple.dport;
	__be32 frontend[4] = {};
	int refused;

	if (nodeport_dispatch == DISPATCH_IPIP && !plan->route.address[0])
		return REFUSE(DROP_NO_SOURCE);
	refused = packet_decrement_ttl(ctx, packet, v6);
	if (refused)
		return refused;
	if (nodeport_dispatch == DISPATCH_IPIP)
		return ipip_wrap(ctx, packet, plan->route.address, target->address, v6);
	address_copy(frontend, packet->tuple.daddr, v6);
	refused = packet_set_destination(ctx, packet, target->address, target->port, v6);
	if (refused || !plan->growth || (packet->flags & PACKET_ICMP_ERROR))
		return refused;
	return dsr_insert(ctx, packet, frontend, port, v6);
}

PER_FAMILY_WITH(nodeport_direct, struct nodeport_plan, NODEPORT_PASS)

/* Make it a packet to a backend that is not on this node. 0 or a refusal. */
static __always_inline int nodeport_remote(ctx_t *ctx, struct packet *packet,
					   struct nodeport_plan *plan, const bool v6)
{
	if (!plan->direct)
		return nodeport_snat(ctx, packet, plan, v6);
	return BY_FAMILY(v6, nodeport_direct, ctx, packet, plan);
}

/* What becomes of a packet: verdict of the program, and the MTU that a refused one exceeds. */
struct nodeport_fate {
	int verdict;
	__u32 mtu;
};

/* A packet to a frontend. 0 with its fate, NODEPORT_PASS, or a refusal. */
static __always_inline int nodeport_request(ctx_t *ctx, struct packet *packet,
					    struct nodeport_fate *fate, const bool v6)
{
	struct nodeport_plan *plan = nodeport_plan();
	int done;

	if (!plan)
		return NODEPORT_PASS;
	plan->way = ROUTE_STACK;
	done = BY_FAMILY(v6, nodeport_resolve, ctx, packet, plan);
	if (plan->way < 0)
		fate->mtu = plan->route.fib.mtu_result - plan->growth;
	if (done)
		return done;
	if (!nodeport_leads_out(plan)) {
		plan->decision.sport = plan->to.sport;
		return lb_translate(ctx, packet, &plan->decision, v6);
	}
	done = nodeport_remote(ctx, packet, plan, v6);
	if (!done)
		fate->verdict = forward_out(ctx, &plan->route, plan->way);
	return done;
}

PER_FAMILY_WITH(nodeport_request, struct nodeport_fate, NODEPORT_PASS)

/* Note in the client's entry what a backend's packet changed in the way back, so that both stay equally
 * long. The packet has its frontend as its source now; port: the one that it came to. */
static __always_inline void nodeport_answered(ctx_t *ctx, const struct packet *packet,
					      struct nodeport_plan *plan, __be16 port, const bool v6)
{
	struct ct_entry *entry;

	if (!ct_accounting && !plan->source.noted)
		return;
	tuple_exchange(&plan->to, &packet->tuple);
	entry = ct_lookup(&plan->to, CT_SERVICE, v6);
	/* On another port it is another connection by now. */
	if (entry && entry->rev_nat == plan->source.rev_nat && entry->nat_port == port)
		ct_seen(ctx, entry, packet, true, true, ct_now_s());
}

/* Make the frontend of a reply its source; false if there is none at that address any more. */
static __always_inline bool nodeport_frontend(const struct packet *packet, struct nodeport_plan *plan,
					      const bool v6)
{
	struct packet_ends *ends = &plan->ends;
	bool found = lb_frontend(plan->source.rev_nat, ends->source.word, &ends->sport, v6);

	if (!plan->frontend.port)
		return found;
	if (found && ends->sport == plan->frontend.port &&
	    address_equal(ends->source.word, plan->frontend.address, v6))
		return true;
	address_copy(ends->source.word, plan->frontend.address, v6);
	ends->sport = plan->frontend.port;
	return lb_serves(ends->source.word, ends->sport, packet->tuple.proto, false, v6);
}

/* A reply to a translated source: to the client, from the frontend; or to a socket of this node whose
 * own port was taken. 0 with its fate, NODEPORT_PASS, or a refusal. */
static __always_inline int nodeport_reply(ctx_t *ctx, struct packet *packet,
					  struct nodeport_fate *fate, const bool v6)
{
	struct nodeport_plan *plan = nodeport_plan();
	__be16 port = packet->tuple.dport;
	struct packet_ends *ends;
	struct nat_end *end;
	int refused;

	if (!plan)
		return NODEPORT_PASS;
	ends = &plan->ends;
	end = &plan->source;
	if (!nat_reply(packet, end, &plan->frontend, v6))
		return NODEPORT_PASS;
	flow_note_known(packet, true, packet->tcp_flags & monitor_flags);
	if (!end->rev_nat)
		return in_xdp ? NODEPORT_PASS :
				packet_set_destination(ctx, packet, end->address, end->port, v6);
	if (!nodeport_frontend(packet, plan, v6))
		return REFUSE(DROP_NO_SERVICE);
	plan->way = route_find(ctx, &plan->route, ends->source.word, end->address,
			       route_length(ctx, packet), v6);
	if (plan->way < 0) {
		fate->mtu = plan->route.fib.mtu_result;
		return plan->way;
	}
	if (in_xdp && plan->way != ROUTE_OUT)
		return NODEPORT_PASS;
	address_copy(ends->destination.word, end->address, v6);
	ends->dport = end->port;
	refused = packet_forward(ctx, packet, ends, v6);
	if (refused)
		return refused;
	nodeport_answered(ctx, packet, plan, port, v6);
	if (plan->way != ROUTE_STACK)
		fate->verdict = forward_out(ctx, &plan->route, plan->way);
	return 0;
}

PER_FAMILY_WITH(nodeport_reply, struct nodeport_fate, NODEPORT_PASS)

/* Request or reply: 0 with its fate, NODEPORT_PASS, or a refusal. */
static __always_inline int nodeport_enters(ctx_t *ctx, struct packet *packet,
					   struct nodeport_fate *fate, const bool v6)
{
	int done = BY_FAMILY(v6, nodeport_request, ctx, packet, fate);

	if (done != NODEPORT_PASS)
		return done;
	return BY_FAMILY(v6, nodeport_reply, ctx, packet, fate);
}

/* Count a refusal, and answer where the sender can do something about it. */
static __always_inline int nodeport_refuse(ctx_t *ctx, const struct packet *packet, int refused,
					   const struct nodeport_fate *fate)
{
	__s16 reason = refusal_reason(refused);

	drop_refused(ctx, refused, DIRECTION_INGRESS);
	if (reason == DROP_NO_BACKEND || reason == DROP_NO_SERVICE)
		return icmp_unreachable(ctx, packet);
	if (reason == DROP_FRAG_NEEDED)
		return icmp_too_big(ctx, packet, fate->mtu);
	return CTX_DROP;
}

/* Report a packet that a program of the node's device lets go; the value is the verdict. */
static __always_inline int nodeport_passes(ctx_t *ctx, const struct nodeport_plan *plan, int verdict)
{
	if (verdict == CTX_OK)
		trace_to(ctx, &plan->packet, TRACE_TO_STACK, DIRECTION_INGRESS, 0);
	else
		trace_to(ctx, &plan->packet,
			 plan->route.outside ? TRACE_TO_NETWORK : TRACE_TO_ENDPOINT, DIRECTION_EGRESS,
			 plan->route.fib.ifindex);
	return verdict;
}

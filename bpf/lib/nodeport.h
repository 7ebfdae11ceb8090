/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Services asked from outside, at a device of the node:
 *
 *	backend on this node	the destination is translated, the stack does the rest; the reply gets the
 *				frontend as its source where it leaves (nodeport_leaves)
 *	elsewhere, snat		the source becomes the node's too; the reply comes back here
 *	elsewhere, dsr		the client's address stays; the backend's node answers in the frontend's name
 *
 * XDP does what ends in sending a packet to a known neighbour, and leaves everything else to tc as it
 * came: no packet is translated twice. */
#include "dsr.h"
#include "forward.h"
#include "icmp.h"
#include "ipip.h"
#include "lb_packet.h"
#include "nat.h"

/* Set before load. Whether packets that bring their frontend are accepted; how they carry it. */
const volatile bool nodeport_dsr = false;
const volatile __u8 nodeport_dispatch = 0;

#define DISPATCH_OPT 0
#define DISPATCH_IPIP 1

/* Not ours: the stack or whoever is next. */
#define NODEPORT_PASS 1

#ifdef CILIA_XDP
#define in_xdp true
#else
#define in_xdp false
#endif

/* One copy a family, not static: verified once for any packet, with a stack frame of its own. */
#define PER_FAMILY(name, type)								\
	__noinline int name##4(ctx_t *ctx, struct packet *packet, type *more)		\
	{										\
		return packet && more ? name(ctx, packet, more, false) : NODEPORT_PASS;	\
	}										\
	__noinline int name##6(ctx_t *ctx, struct packet *packet, type *more)		\
	{										\
		return packet && more ? name(ctx, packet, more, true) : NODEPORT_PASS;	\
	}

/* A packet and what is decided about it. It is in a map, for the stack has no room for it; nothing
 * interrupts a program of these hooks to run another one of them on the same CPU. */
struct nodeport_plan {
	struct packet packet;
	struct lb_decision decision;
	struct route route;
	struct nat_end source;
	__u16 growth;
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

static __always_inline bool nodeport_is_direct(const struct lb_decision *decision)
{
	return nodeport_dsr && (decision->service_flags & LB_SVC_DSR);
}

/* lb_resolve, whose LB_PASS is NODEPORT_PASS. */
static __always_inline int nodeport_resolve(ctx_t *ctx, struct packet *packet,
					    struct nodeport_plan *plan, const bool v6)
{
	return lb_resolve(ctx, packet, &plan->decision, CT_NODE_PORT, true, v6);
}

PER_FAMILY(nodeport_resolve, struct nodeport_plan)

/* The way to the backend, and how much longer the packet becomes. */
static __always_inline int nodeport_route(ctx_t *ctx, struct packet *packet,
					  struct nodeport_plan *plan, const bool v6)
{
	plan->growth = 0;
	if (nodeport_is_direct(&plan->decision))
		plan->growth = nodeport_dispatch == DISPATCH_IPIP ? ipip_growth(v6) :
								    dsr_growth(packet, v6);
	return route_find(ctx, &plan->route, packet->tuple.saddr, plan->decision.target.address,
			  route_length(ctx, packet) + plan->growth, v6);
}

/* The backend becomes the destination and the node the source. */
static __always_inline int nodeport_snat(ctx_t *ctx, struct packet *packet,
					 struct nodeport_plan *plan, const bool v6)
{
	struct nat_end *source = &plan->source;
	int refused;

	address_copy(source->address, plan->route.address, v6);
	source->rev_nat = plan->decision.rev_nat;
	refused = packet_set_destination(ctx, packet, plan->decision.target.address,
					 plan->decision.target.port, v6);
	if (!refused)
		refused = nat_source(ctx, packet, source, v6);
	return refused ? refused : packet_set_source(ctx, packet, source->address, source->port, v6);
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

	if (nodeport_dispatch == DISPATCH_IPIP)
		return ipip_wrap(ctx, packet, plan->route.address, target->address, v6);
	address_copy(frontend, packet->tuple.daddr, v6);
	refused = packet_set_destination(ctx, packet, target->address, target->port, v6);
	if (refused || !plan->growth || (packet->flags & PACKET_ICMP_ERROR))
		return refused;
	return dsr_insert(ctx, packet, frontend, port, v6);
}

/* Make it a packet to a backend that is not on this node. 0 or a refusal. */
static __always_inline int nodeport_remote(ctx_t *ctx, struct packet *packet,
					   struct nodeport_plan *plan, const bool v6)
{
	int refused;

	if (!plan->route.address[0])
		return REFUSE(DROP_NO_SOURCE);
	refused = packet_decrement_ttl(ctx, packet, v6);
	if (refused)
		return refused;
	if (nodeport_is_direct(&plan->decision))
		return nodeport_direct(ctx, packet, plan, v6);
	return nodeport_snat(ctx, packet, plan, v6);
}

PER_FAMILY(nodeport_remote, struct nodeport_plan)

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
	int way, done;

	if (!plan)
		return NODEPORT_PASS;
	done = v6 ? nodeport_resolve6(ctx, packet, plan) : nodeport_resolve4(ctx, packet, plan);
	if (done)
		return done;
	way = nodeport_route(ctx, packet, plan, v6);
	if (way < 0) {
		fate->mtu = plan->route.fib.mtu_result - plan->growth;
		return way;
	}
	if (in_xdp && (way != ROUTE_OUT || !plan->route.outside))
		return NODEPORT_PASS;
	if (way == ROUTE_STACK || !plan->route.outside)
		return packet_set_destination(ctx, packet, plan->decision.target.address,
					      plan->decision.target.port, v6);
	done = v6 ? nodeport_remote6(ctx, packet, plan) : nodeport_remote4(ctx, packet, plan);
	if (!done)
		fate->verdict = forward_out(ctx, &plan->route, way);
	return done;
}

PER_FAMILY(nodeport_request, struct nodeport_fate)

/* Note in the connection's entries what a backend's packet says about it: packet is still from the
 * backend, to the client. */
static __always_inline struct ct_entry *nodeport_answered(ctx_t *ctx, const struct packet *packet,
							  const bool v6)
{
	struct ct_entry *entry = NULL;

	if (packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		entry = ct_lookup_reply(packet, CT_EGRESS, v6);
	if (entry)
		ct_seen(ctx, entry, packet, true, false, ct_now_s());
	return entry;
}

/* A reply to a translated source: to the client, from the frontend; or to a socket of this node whose
 * own port was taken. 0 with its fate, NODEPORT_PASS, or a refusal. */
static __always_inline int nodeport_reply(ctx_t *ctx, struct packet *packet,
					  struct nodeport_fate *fate, const bool v6)
{
	__be32 frontend[4] = {};
	struct ct_entry *entry;
	struct nat_end end = {};
	struct tuple client = {};
	struct nodeport_plan *plan = nodeport_plan();
	__be16 port = 0;
	int way, refused;

	if (!plan || !nat_reply(packet, &end, v6))
		return NODEPORT_PASS;
	if (!end.rev_nat)
		return in_xdp ? NODEPORT_PASS :
				packet_set_destination(ctx, packet, end.address, end.port, v6);
	if (!lb_frontend(end.rev_nat, frontend, &port, v6))
		return REFUSE(DROP_NO_SERVICE);
	way = route_find(ctx, &plan->route, frontend, end.address, route_length(ctx, packet), v6);
	if (way < 0) {
		fate->mtu = plan->route.fib.mtu_result;
		return way;
	}
	if (in_xdp && way != ROUTE_OUT)
		return NODEPORT_PASS;
	refused = packet_decrement_ttl(ctx, packet, v6);
	if (refused)
		return refused;
	refused = packet_set_destination(ctx, packet, end.address, end.port, v6);
	if (refused)
		return refused;
	entry = nodeport_answered(ctx, packet, v6);
	refused = packet_set_source(ctx, packet, frontend, port, v6);
	if (refused)
		return refused;
	if (entry && (packet->tcp_flags & (TCP_FIN | TCP_RST))) {
		tuple_exchange(&client, &packet->tuple);
		lb_close(entry, &client, v6);
	}
	if (way != ROUTE_STACK)
		fate->verdict = forward_out(ctx, &plan->route, way);
	return 0;
}

PER_FAMILY(nodeport_reply, struct nodeport_fate)

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

#ifndef CILIA_XDP
static __always_inline int nodeport_dsr_keep(const struct tuple *reply, const __be32 *address,
					     __be16 port, const bool v6)
{
	__u32 now_s = ct_now_s();
	union ct_key key;

	ct_key_of(&key, reply, NAT_OUT, v6);
	if (v6) {
		struct nat6_value value = { .port = port, .flags = NAT_DSR, .created_s = now_s };

		address_copy(value.address, address, true);
		value.expires_s = now_s + nat_lifetime_s(reply->proto, 0);
		return bpf_map_update_elem(&cilia_snat6, &key, &value, BPF_ANY);
	} else {
		struct nat4_value value = {
			.address = *address,
			.port = port,
			.flags = NAT_DSR,
			.created_s = now_s,
			.expires_s = now_s + nat_lifetime_s(reply->proto, 0),
		};

		return bpf_map_update_elem(&cilia_snat4, &key, &value, BPF_ANY);
	}
}

/* A packet that brings its frontend: remember it for the replies. One that opens a connection and
 * brings none was sent to the backend itself. */
static __always_inline int nodeport_dsr_arrives(ctx_t *ctx, const struct packet *packet,
						struct nodeport_fate *fate, const bool v6)
{
	__be32 address[4] = {};
	struct tuple reply = {};
	struct nat_end end = {};
	union ct_key key;
	__be16 port;

	if (!nodeport_dsr || (packet->flags & (PACKET_ICMP_ERROR | PACKET_LATER)))
		return NODEPORT_PASS;
	tuple_exchange(&reply, &packet->tuple);
	if (dsr_read(ctx, packet, address, &port, v6))
		return nodeport_dsr_keep(&reply, address, port, v6) ? REFUSE(DROP_MAP_FULL) : 0;
	if (packet_opens_tcp(packet) && nat_find(&reply, NAT_OUT, &end, v6) &&
	    (end.flags & NAT_DSR)) {
		ct_key_of(&key, &reply, NAT_OUT, v6);
		bpf_map_delete_elem(v6 ? (void *)&cilia_snat6 : (void *)&cilia_snat4, &key);
	}
	return NODEPORT_PASS;
}

PER_FAMILY(nodeport_dsr_arrives, struct nodeport_fate)

/* The backend of a frontend that has an address: slots are gone through in turn. */
struct nodeport_scan {
	union lb_key key;
	__be32 address[4];
	struct lb_target target;
	bool v6;
	bool found;
};

static long nodeport_scan_slot(__u32 turn, struct nodeport_scan *scan)
{
	const struct lb_service *slot;

	if (scan->v6) {
		scan->key.v6.slot = turn + 1;
		slot = bpf_map_lookup_elem(&cilia_lb6_svc, &scan->key.v6);
		scan->found = slot && lb_target(&scan->target, slot->backend_id, true) &&
			      address_equal(scan->target.address, scan->address, true);
	} else {
		scan->key.v4.slot = turn + 1;
		slot = bpf_map_lookup_elem(&cilia_lb4_svc, &scan->key.v4);
		scan->found = slot && lb_target(&scan->target, slot->backend_id, false) &&
			      address_equal(scan->target.address, scan->address, false);
	}
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

/* Entries for a connection whose backend another node chose. */
static __always_inline int nodeport_track(ctx_t *ctx, const struct packet *packet,
					  struct ct_entry *entry, const struct lb_target *target,
					  struct ct_new *new, const bool v6)
{
	struct tuple to = packet->tuple;
	int refused;

	address_copy(to.daddr, target->address, v6);
	to.dport = target->port;
	refused = lb_track(ctx, packet, ct_lookup(&to, CT_EGRESS, v6), &to, new, v6);
	if (refused || (packet->flags & PACKET_ICMP_ERROR))
		return refused;
	if (entry && entry->backend_id == target->id && ct_continues(entry, packet, new->now_s)) {
		ct_seen(ctx, entry, packet, false, true, new->now_s);
		return 0;
	}
	new->direction = CT_SERVICE;
	return ct_create(&packet->tuple, new, v6);
}

/* A client's packet inside one that another node addressed to the backend. 0, NODEPORT_PASS or a
 * refusal; the packet goes on to the stack. */
static __always_inline int nodeport_unwrap(ctx_t *ctx, const struct packet *outer, const bool v6)
{
	struct nodeport_scan scan = {};
	struct ct_new new = {
		.ifindex = ctx_ifindex(ctx),
		.now_s = ct_now_s(),
		.flags = CT_NODE_PORT | CT_DSR,
	};
	struct ct_entry *entry;
	struct lb_service *svc;
	struct packet packet;
	int refused;

	if (!nodeport_dsr || nodeport_dispatch != DISPATCH_IPIP ||
	    !ipip_inner(ctx, outer, &packet, v6))
		return NODEPORT_PASS;
	svc = lb_lookup(&scan.key, &packet.tuple, true, v6);
	if (!svc)
		return NODEPORT_PASS;
	address_copy(scan.address, outer->tuple.daddr, v6);
	entry = ct_lookup(&packet.tuple, CT_SERVICE, v6);
	if (!nodeport_chosen(&scan, svc, entry, v6))
		return NODEPORT_PASS;
	new.rev_nat = svc->rev_nat;
	new.backend_id = scan.target.id;
	new.tcp_flags = packet.tcp_flags;
	refused = nodeport_track(ctx, &packet, entry, &scan.target, &new, v6);
	if (refused)
		return refused;
	refused = ipip_unwrap(ctx, outer, &packet);
	return refused ? refused : packet_set_destination(ctx, &packet, scan.target.address,
							  scan.target.port, v6);
}

/* Keep the entry of a reply alive, at most a write a second. */
static __always_inline void nodeport_dsr_refresh(const struct packet *packet, const bool v6)
{
	struct nat4_value *value4;
	struct nat6_value *value6;
	union ct_key key;
	__u32 expires_s;
	__u16 flags;

	if (packet->flags & PACKET_ICMP_ERROR)
		return;
	ct_key_of(&key, &packet->tuple, NAT_OUT, v6);
	if (v6) {
		value6 = bpf_map_lookup_elem(&cilia_snat6, &key);
		if (!value6)
			return;
		flags = nat_flags_after(value6->flags, packet->tcp_flags, true);
		expires_s = ct_now_s() + nat_lifetime_s(packet->tuple.proto, flags);
		if (value6->expires_s != expires_s || value6->flags != flags) {
			value6->flags = flags;
			value6->expires_s = expires_s;
		}
		return;
	}
	value4 = bpf_map_lookup_elem(&cilia_snat4, &key);
	if (!value4)
		return;
	flags = nat_flags_after(value4->flags, packet->tcp_flags, true);
	expires_s = ct_now_s() + nat_lifetime_s(packet->tuple.proto, flags);
	if (value4->expires_s != expires_s || value4->flags != flags) {
		value4->flags = flags;
		value4->expires_s = expires_s;
	}
}

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

	if (entry && entry->rev_nat && (entry->flags & CT_NODE_PORT))
		return lb_reverse(ctx, packet, entry, v6);
	if (nat_find(&packet->tuple, NAT_OUT, &end, v6)) {
		if (end.flags & NAT_DSR)
			nodeport_dsr_refresh(packet, v6);
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
#endif

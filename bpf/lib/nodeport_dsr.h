/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Clients of other nodes at a device of this one, where the backend is: packets that bring their
 * frontend in an option, or travel inside another packet. The backend's replies get the frontend as
 * their source where they leave (nodeport_leaves.h). Not for XDP: what arrives goes to the stack. */
#include "nodeport.h"

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
 * brings none was sent to the backend itself; of datagrams, each one opens. */
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
	if ((packet_opens_tcp(packet) || packet->tuple.proto == IPPROTO_UDP) &&
	    nat_find(&reply, NAT_OUT, &end, v6) && (end.flags & NAT_DSR)) {
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

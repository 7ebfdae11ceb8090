/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What workloads of this node send to the world, which knows no way back to them: it leaves with an address
 * of the node. This file says which packets these are; nat.h gives each flow its port.
 *
 *	not to the world	nodes of the cluster, and prefixes with routes of their own (cilia_ipmasq4, 6)
 *	not masqueraded		answers to what the world asked a workload at its own address
 *
 * What cannot be translated is refused: nothing leaves for the world with a workload's address by mistake. */
#include "cluster_nodes.h"
#include "ct.h"
#include "endpoint_place.h"
#include "forward.h"
#include "masquerade_types.h"

/* Set before load: by family. */
const volatile bool masquerade4 = false;
const volatile bool masquerade6 = false;

#define MASQUERADE_LPM(name, key_type)				\
	struct {						\
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);		\
		__type(key, key_type);				\
		__type(value, struct masquerade_exclusion);	\
		__uint(max_entries, 32768);			\
		__uint(map_flags, BPF_F_NO_PREALLOC);		\
	} name SEC(".maps")

MASQUERADE_LPM(cilia_ipmasq4, struct masquerade4_key);
MASQUERADE_LPM(cilia_ipmasq6, struct masquerade6_key);

static __always_inline bool masquerade(const bool v6)
{
	return v6 ? masquerade6 : masquerade4;
}

/* Whether a destination knows the way back to this node's workloads. */
static __noinline bool masquerade_spares(const __be32 *address, bool v6)
{
	struct masquerade6_key key = { .address[0] = address[0] };

	if (cluster_node(address, v6))
		return true;
	if (!v6) {
		key.prefix_bits = 32;
		return bpf_map_lookup_elem(&cilia_ipmasq4, &key);
	}
	key.prefix_bits = 128;
	key.address[1] = address[1];
	key.address[2] = address[2];
	key.address[3] = address[3];
	return bpf_map_lookup_elem(&cilia_ipmasq6, &key);
}

/* Whether a workload of this node sends the packet to the world. */
static __noinline bool masquerade_concerns(ctx_t *ctx, const struct packet *packet, bool v6)
{
	struct packet_addresses ends = {};

	if (v6 ? packet_addresses(ctx, packet, &ends, true) : packet_addresses(ctx, packet, &ends, false))
		return false;
	return endpoint_at(ends.source, v6) && !masquerade_spares(ends.destination, v6);
}

/* Whether a workload of this node reports an error about a packet that was none of its own. Its flow is not
 * to be found by what is quoted. */
static __noinline bool masquerade_foreign_error(ctx_t *ctx, const struct packet *packet, bool v6)
{
	struct packet_addresses ends = {};

	if (v6 ? packet_addresses(ctx, packet, &ends, true) : packet_addresses(ctx, packet, &ends, false))
		return false;
	return endpoint_at(ends.source, v6) && !address_equal(ends.source, packet->tuple.saddr, v6);
}

/* Whether the packet answers what the world asked a workload at its own address; asked: the tuple of the
 * question. Other flows that were opened towards the workload did not come in by a device of the node: an
 * answer from the world whose question is forgotten looks like one. */
static __always_inline bool masquerade_answers(const struct tuple *asked, const bool v6)
{
	struct ct_entry *entry = ct_lookup(asked, CT_INGRESS, v6);

	return entry && !ct_expired(entry, ct_now_s()) && netdev_find(entry->ifindex);
}

/* Remember what the world asks a workload at its own address: the workload's program goes on with the entry. A
 * connection of TCP has one as those to backends have (lb_direct.h), unless it was forgotten. */
static __noinline __attribute__((unused)) int masquerade_asked(ctx_t *ctx, const struct packet *packet,
							       bool v6)
{
	struct ct_new new = { .direction = CT_INGRESS };
	struct ct_entry *entry;

	if ((packet->tuple.proto == IPPROTO_TCP && !(packet->flags & PACKET_STRAY)) ||
	    (packet->flags & (PACKET_ICMP_ERROR | PACKET_NO_PORTS)) ||
	    !endpoint_at(packet->tuple.daddr, v6) || masquerade_spares(packet->tuple.saddr, v6))
		return 0;
	new.now_s = ct_now_s();
	new.ifindex = ctx_ifindex(ctx);
	entry = ct_lookup(&packet->tuple, CT_INGRESS, v6);
	if (entry && !ct_expired(entry, new.now_s))
		return 0;
	flow_note_new(packet);
	return ct_create(&packet->tuple, &new, v6);
}

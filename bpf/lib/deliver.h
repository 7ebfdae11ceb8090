/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* To a workload of this node without the node's stack: from the sender's program into the other end of the
 * workload's pair. The node's forwarding rules never see it, whatever they say.
 *
 * What the workload's own program would do on the way in (answers of a service get its address) is the
 * caller's to do, for that program is passed by.
 */
#include "endpoint.h"
#include "endpoint_place.h"
#include "rewrite.h"
#include "trace.h"

#define PACKET_HOST 0		/* __sk_buff.pkt_type: the frame is addressed to the device */

/* Set before load: packets between workloads take the node's stack, as its rules want to see them. */
const volatile bool host_legacy_routing = false;

/* The workload that a packet goes to, or NULL: not one of this node, or not for us to deliver. The address is
 * read anew: an ICMP error has that of another packet in its tuple. */
static __noinline __attribute__((unused)) const struct endpoint_place *
deliver_to(ctx_t *ctx, const struct packet *packet)
{
	struct endpoint_address key = {};

	if (host_legacy_routing || ctx->pkt_type != PACKET_HOST || packet->ttl <= 1)
		return NULL;
	if (packet->flags & PACKET_V6) {
		key.v6 = 1;
		if (ctx_load_bytes(ctx, packet->l3 + __builtin_offsetof(struct ipv6hdr, daddr),
				   key.address, sizeof(key.address)))
			return NULL;
	} else if (ctx_load_bytes(ctx, packet->l3 + __builtin_offsetof(struct iphdr, daddr),
				  key.address, sizeof(key.address[0]))) {
		return NULL;
	}
	return bpf_map_lookup_elem(&cilia_lxc, &key);
}

/* The verdict of the program. Whoever sent the packet said nothing with its mark. direction: of reports. */
static __always_inline int deliver(ctx_t *ctx, struct packet *packet,
				   const struct endpoint_place *place, __u8 direction)
{
	int refused = packet->flags & PACKET_V6 ? packet_decrement_ttl(ctx, packet, true) :
						  packet_decrement_ttl(ctx, packet, false);

	if (refused)
		return drop_refused(ctx, refused, direction);
	if (ctx_store_bytes(ctx, 0, place->mac, ETH_ALEN) ||
	    ctx_store_bytes(ctx, ETH_ALEN, place->node_mac, ETH_ALEN))
		return drop_refused(ctx, REFUSE(DROP_WRITE_ERROR), direction);
	ctx->mark = 0;
	trace_to(ctx, packet, TRACE_TO_ENDPOINT, direction, place->ifindex);
	return bpf_redirect_peer(place->ifindex, 0);
}

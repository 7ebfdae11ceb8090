/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* At the devices of a node that lead to clients and to other nodes: services asked from outside, on
 * their way in, and the replies of this node's backends on their way out. */
#include "lib/mark_types.h"
#include "lib/nodeport_leaves.h"
#include "lib/nodeport_return.h"

/* Whether the packet goes to a workload of this node, and not to the node itself or through it. */
static __always_inline bool goes_to_workload(ctx_t *ctx, const struct packet *packet, const bool v6)
{
	struct nodeport_plan *plan = nodeport_plan();

	return plan && route_find(ctx, &plan->route, packet->tuple.saddr, packet->tuple.daddr, 0,
				  v6) > ROUTE_STACK && !plan->route.outside;
}

/* What is for a backend itself, from a client outside, another node's socket or translated there; of TCP and
 * datagrams. */
static __always_inline int direct(ctx_t *ctx, struct packet *packet, const bool v6)
{
	__u8 proto = packet->tuple.proto;
	int refused = 0;

	if (packet_opens_tcp(packet) && !goes_to_workload(ctx, packet, v6))
		/* What a frontend left that was here: the connection is the node's. */
		ct_delete(&packet->tuple, CT_SERVICE, v6);
	else if (proto == IPPROTO_TCP || proto == IPPROTO_UDP)
		refused = lb_direct(ctx, packet, CT_NODE_PORT, v6);
	if (refused)
		return refused;
	if (masquerade(v6))
		masquerade_asked(ctx, packet, v6);
	return NODEPORT_PASS;
}

PER_FAMILY(direct, NODEPORT_PASS)

/* Request, reply, packet that brings its frontend, or one that has none. */
static __always_inline int enters(ctx_t *ctx, struct packet *packet, struct nodeport_fate *fate,
				  const bool v6)
{
	int done = nodeport_enters(ctx, packet, fate, v6);

	if (done != NODEPORT_PASS)
		return done;
	done = BY_FAMILY(v6, nodeport_dsr_arrives, ctx, packet, fate);
	if (done != NODEPORT_PASS)
		return done;
	return BY_FAMILY(v6, direct, ctx, packet);
}

/* Whether the packet comes in the name of a workload of this node, whose own packets leave it by its device. Asked
 * before all else: the stack of the calls from the device has no room for one more result. */
static __noinline bool is_forged(ctx_t *ctx)
{
	__be32 source[4] = {};

	switch (ctx_protocol(ctx)) {
	case bpf_htons(ETH_P_IP):
		return !ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), source,
				       sizeof(source[0])) &&
		       endpoint_at(source, false);
	case bpf_htons(ETH_P_IPV6):
		return !ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), source,
				       sizeof(source)) &&
		       endpoint_at(source, true);
	default:
		return false;
	}
}

SEC("tc")
int from_netdev(ctx_t *ctx)
{
	struct nodeport_fate fate = { .verdict = CTX_OK };
	struct nodeport_plan *plan = nodeport_plan();
	struct packet *packet;
	int result;

	if (!plan)
		return CTX_OK;
	trace_from(ctx, TRACE_FROM_NETWORK, DIRECTION_INGRESS);
	if (ctx_drop_priority(ctx))
		return drop_refused(ctx, REFUSE(DROP_WRITE_ERROR), DIRECTION_INGRESS);
	if (pod_network && is_forged(ctx))
		return drop_refused(ctx, REFUSE(DROP_INVALID_SOURCE), DIRECTION_INGRESS);
	packet = &plan->packet;
	result = packet_parse(ctx, packet, ETH_HLEN);
	if (result == PACKET_OTHER)
		result = BY_FAMILY(packet->flags & PACKET_V6, nodeport_unwrap, ctx, packet, plan);
	else if (!result)
		result = enters(ctx, packet, &fate, packet->flags & PACKET_V6);
	if (result == LB_RETURN) {
		BY_FAMILY(packet->flags & PACKET_V6, nodeport_return, packet);
		result = enters(ctx, packet, &fate, packet->flags & PACKET_V6);
	}
	if (result < 0)
		return nodeport_refuse(ctx, packet, result, &fate);
	return nodeport_passes(ctx, plan, fate.verdict);
}

SEC("tc")
int to_netdev(ctx_t *ctx)
{
	struct nodeport_plan *plan;
	struct packet *packet;
	int result;

	if ((ctx->mark & MARK_MASK) == MARK_TRANSLATED) {
		ctx->mark &= ~MARK_MASK;
		return CTX_OK;
	}
	plan = nodeport_plan();
	if (!plan)
		return CTX_OK;
	packet = &plan->packet;
	result = packet_parse(ctx, packet, ETH_HLEN);
	if (result)
		result = nodeport_leaves_other(ctx, packet, result);
	else
		result = BY_FAMILY(packet->flags & PACKET_V6, nodeport_leaves, ctx, packet, plan);
	if (result < 0)
		return drop_refused(ctx, result, DIRECTION_EGRESS);
	trace_to(ctx, packet, TRACE_TO_NETWORK, DIRECTION_EGRESS, ctx_ifindex(ctx));
	return CTX_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";

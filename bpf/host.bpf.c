/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* At the devices of a node that lead to clients and to other nodes: services asked from outside, on
 * their way in, and the replies of this node's backends on their way out. */
#include "lib/mark_types.h"
#include "lib/nodeport_leaves.h"

/* Whether the packet goes to a workload of this node, and not to the node itself or through it. */
static __always_inline bool goes_to_workload(ctx_t *ctx, const struct packet *packet, const bool v6)
{
	struct nodeport_plan *plan = nodeport_plan();

	return plan && route_find(ctx, &plan->route, packet->tuple.saddr, packet->tuple.daddr, 0,
				  v6) > ROUTE_STACK && !plan->route.outside;
}

/* What is for a backend itself, from a client outside, another node's socket or translated there. */
static __always_inline int direct(ctx_t *ctx, struct packet *packet, const bool v6)
{
	int refused;

	if (packet_opens_tcp(packet) && !goes_to_workload(ctx, packet, v6))
		return NODEPORT_PASS;
	refused = lb_direct(ctx, packet, CT_NODE_PORT, v6);
	return refused ? refused : NODEPORT_PASS;
}

__noinline int direct4(ctx_t *ctx, struct packet *packet)
{
	return packet ? direct(ctx, packet, false) : NODEPORT_PASS;
}

__noinline int direct6(ctx_t *ctx, struct packet *packet)
{
	return packet ? direct(ctx, packet, true) : NODEPORT_PASS;
}

/* Request, reply, packet that brings its frontend, or one that has none. */
static __always_inline int enters(ctx_t *ctx, struct packet *packet, struct nodeport_fate *fate,
				  const bool v6)
{
	int done = nodeport_enters(ctx, packet, fate, v6);

	if (done != NODEPORT_PASS)
		return done;
	done = v6 ? nodeport_dsr_arrives6(ctx, packet, fate) : nodeport_dsr_arrives4(ctx, packet, fate);
	if (done != NODEPORT_PASS)
		return done;
	return v6 ? direct6(ctx, packet) : direct4(ctx, packet);
}

__noinline int unwrap4(ctx_t *ctx, struct nodeport_plan *plan)
{
	return plan ? nodeport_unwrap(ctx, plan, false) : NODEPORT_PASS;
}

__noinline int unwrap6(ctx_t *ctx, struct nodeport_plan *plan)
{
	return plan ? nodeport_unwrap(ctx, plan, true) : NODEPORT_PASS;
}

__noinline int leaves4(ctx_t *ctx, struct packet *packet)
{
	return packet ? nodeport_leaves(ctx, packet, false) : NODEPORT_PASS;
}

__noinline int leaves6(ctx_t *ctx, struct packet *packet)
{
	return packet ? nodeport_leaves(ctx, packet, true) : NODEPORT_PASS;
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
	if (ctx_drop_priority(ctx))
		return drop_refused(ctx, REFUSE(DROP_WRITE_ERROR), DIRECTION_INGRESS);
	packet = &plan->packet;
	result = packet_parse(ctx, packet, ETH_HLEN);
	if (result == PACKET_OTHER)
		result = packet->flags & PACKET_V6 ? unwrap6(ctx, plan) : unwrap4(ctx, plan);
	else if (!result)
		result = enters(ctx, packet, &fate, packet->flags & PACKET_V6);
	return result < 0 ? nodeport_refuse(ctx, packet, result, &fate) : fate.verdict;
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
		return CTX_OK;	/* the node's own concern */
	result = packet->flags & PACKET_V6 ? leaves6(ctx, packet) : leaves4(ctx, packet);
	return result < 0 ? drop_refused(ctx, result, DIRECTION_EGRESS) : CTX_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";

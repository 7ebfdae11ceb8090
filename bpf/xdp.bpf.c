/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* The same as from_netdev of host.bpf.c where a packet leaves the node again at once, before the stack
 * makes an skb of it. Everything else goes on untouched, to from_netdev. */
#define CILIA_XDP
#include "lib/nodeport.h"

SEC("xdp")
int from_netdev_xdp(ctx_t *ctx)
{
	struct nodeport_fate fate = { .verdict = CTX_OK };
	struct nodeport_plan *plan = nodeport_plan();
	struct packet *packet;
	int result;

	if (!plan)
		return CTX_OK;
	packet = &plan->packet;
	result = packet_parse(ctx, packet, ETH_HLEN);
	if (result == PACKET_OTHER)
		return CTX_OK;
	if (!result)
		result = nodeport_enters(ctx, packet, &fate, packet->flags & PACKET_V6);
	if (result < 0)
		return nodeport_refuse(ctx, packet, result, &fate);
	/* What goes on to the stack is reported by from_netdev. */
	return fate.verdict == CTX_OK ? CTX_OK : nodeport_passes(ctx, plan, fate.verdict);
}

char _license[] SEC("license") = "Dual BSD/GPL";

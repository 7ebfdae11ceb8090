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
	return result < 0 ? nodeport_refuse(ctx, packet, result, &fate) : fate.verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";

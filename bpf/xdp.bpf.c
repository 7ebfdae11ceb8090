/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* The same as from_netdev of host.bpf.c where a packet leaves the node again at once, before the stack
 * makes an skb of it. Everything else goes on untouched, to from_netdev. */
#define CILIA_XDP
#include "lib/nodeport.h"

static __always_inline int enters(ctx_t *ctx, struct packet *packet, struct nodeport_fate *fate,
				  const bool v6)
{
	int done = v6 ? nodeport_request6(ctx, packet, fate) : nodeport_request4(ctx, packet, fate);

	if (done != NODEPORT_PASS)
		return done;
	return v6 ? nodeport_reply6(ctx, packet, fate) : nodeport_reply4(ctx, packet, fate);
}

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
		result = enters(ctx, packet, &fate, packet->flags & PACKET_V6);
	return result < 0 ? nodeport_refuse(ctx, packet, result, &fate) : fate.verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";

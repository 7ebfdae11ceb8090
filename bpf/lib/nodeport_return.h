/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Connections from outside through a frontend that was made anew: see lb_return.h. Where the source is
 * translated, the way back tells the backend. Not for XDP, which leaves such a packet to tc. */
#include "lb_return.h"
#include "nodeport.h"

static __always_inline __u32 nodeport_until(struct lb_return *search, const bool v6)
{
	struct nodeport_plan *plan = nodeport_plan();
	const struct ct_entry *service = search->asked.service;
	struct nat_end *source;

	if (!(service->flags & CT_SNAT))
		return lb_until(search, v6);
	if (!plan)
		return 0;
	source = &plan->source;
	address_copy(source->address, service->nat_address, v6);
	source->port = service->nat_port;
	source->rev_nat = service->rev_nat;
	return nat_kept_until(&search->packet->tuple, &search->to, source, v6);
}

static long nodeport_return_slot(__u32 turn, struct lb_return *search)
{
	return lb_return_slot(turn, search, nodeport_until, LB_OUTSIDE);
}

static __always_inline int nodeport_return(struct packet *packet, const bool v6)
{
	lb_return(packet, nodeport_return_slot, LB_OUTSIDE, v6);
	return 0;
}

PER_FAMILY_OF(nodeport_return, 0, packet, (struct packet *packet), packet)

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The one place that decides about flows of workloads whose network is ours. No policy is built yet: everything
 * is allowed.
 *
 * It is called for each end of a flow that is on this node, when the flow is new and when the cached verdict
 * was made for another identity or by another generation; and for each packet that has no entry: other
 * protocols, parts of datagrams whose ports are unknown, errors about no flow. flow.h says when.
 */
#include "ct.h"

/* Set before load. Generation of all verdicts; never 0. */
const volatile __u32 policy_generation = 1;

/* Set before load, by tests alone: directions that are refused, 1 << CT_EGRESS and 1 << CT_INGRESS, and flows of
 * workloads with themselves. */
const volatile __u8 policy_refused_directions = 0;
#define POLICY_REFUSED_ITSELF 0x04

/* A workload of this node that a packet leaves or reaches. */
struct flow_end {
	__u32 identity;
	__u32 remote_identity;	/* of the other end of the packet */
	__u32 ifindex;		/* of its device on the node's side; 0: it is no workload of ours */
	__u16 id;
	__u8 itself;		/* the other end is this workload too, which reaches itself through a service */
	__u8 pad;
};

/* Whether the end allows a flow: 0 or a refusal. direction: CT_EGRESS if the end opened it, or CT_INGRESS.
 * state: FLOW_*. Of a reply the flow was opened by the packet's destination: its direction is the other one of
 * the packet's, and its tuple that of the packet exchanged. Of an ICMP error about a flow (FLOW_RELATED) the
 * tuple is that of a reply. */
__noinline int policy_verdict(ctx_t *ctx, const struct packet *packet, const struct flow_end *end,
			      __u32 direction, __u32 state)
{
	/* The compiler passes nothing for what is not used, and the verifier wants all of it. */
	barrier_var(ctx);
	barrier_var(state);
	if (!packet || !end || (policy_refused_directions & (1 << (direction & 1))))
		return REFUSE(DROP_POLICY_DENIED);
	if ((policy_refused_directions & POLICY_REFUSED_ITSELF) && end->itself)
		return REFUSE(DROP_POLICY_DENIED);
	return 0;
}

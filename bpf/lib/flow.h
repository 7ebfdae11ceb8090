/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Flows of workloads whose network is ours. Each has an entry of connection tracking for either end that is
 * on this node, which keeps the verdict of that end:
 *
 *	flow_leaves	a packet leaves a workload: its flow is CT_EGRESS, or the packet answers one of CT_INGRESS
 *	flow_reaches	a packet reaches a workload and opens or continues a flow of CT_INGRESS
 *	flow_answered	a packet reaches a workload and answers a flow of CT_EGRESS
 *
 * The packet has the addresses of the workloads: after the translation of a service's request, before that of
 * its answer. A SYN answers nobody, nor does TCP without an entry: both open a flow of their own direction. An
 * answer to a flow that was refused from the first packet on is none. Errors are judged with the flow of the
 * packet that they quote, and change nothing about it. What has no entry is judged by each packet.
 */
#include "endpoint_place.h"
#include "ipcache.h"
#include "neighbor.h"
#include "policy.h"

#define FLOW_NONE 1		/* no answer to a flow of the workload */

/* The verdict that lets flows of this end pass. */
static __always_inline __u64 flow_allowed(const struct flow_end *end)
{
	union ct_verdict verdict = {
		.remote_identity = end->remote_identity,
		.generation = policy_generation,
	};

	return verdict.whole;
}

static __always_inline __u64 flow_denied(const struct flow_end *end)
{
	union ct_verdict verdict = {
		.remote_identity = end->remote_identity,
		.generation = policy_generation | VERDICT_DENIED,
	};

	return verdict.whole;
}

static __always_inline bool flow_is_denied(const struct ct_entry *entry)
{
	union ct_verdict verdict = { .whole = ct_verdict(entry) };

	return verdict.generation & VERDICT_DENIED;
}

/* The identity behind the packet's source or destination, 0 if nobody knows it. An address of the link is the
 * node's, which is alone at the other end. */
static __noinline __attribute__((unused)) __u32 flow_remote_identity(ctx_t *ctx, const struct packet *packet,
								     bool source, bool v6)
{
	struct packet_addresses addresses = {};
	const __be32 *remote = source ? addresses.source : addresses.destination;

	if (v6 ? packet_addresses(ctx, packet, &addresses, true) :
		 packet_addresses(ctx, packet, &addresses, false))
		return 0;
	if (v6 && is_link_local6(remote))
		return IDENTITY_HOST;
	return ipcache_identity(remote, v6);
}

/* Whether the packet is for a workload of this node. */
static __noinline __attribute__((unused)) bool flow_is_expected(ctx_t *ctx, const struct packet *packet,
								bool v6)
{
	struct packet_addresses addresses = {};

	if (v6 ? packet_addresses(ctx, packet, &addresses, true) :
		 packet_addresses(ctx, packet, &addresses, false))
		return false;
	return endpoint_at(addresses.destination, v6);
}

/* Whether an entry is of a flow of this workload: several may have the same address of their link. */
static __always_inline bool flow_is_of(const struct ct_entry *entry, const struct packet *packet,
				       const struct flow_end *end, const bool v6)
{
	if (!entry || (entry->flags & CT_NODE_PORT))
		return false;
	return !v6 || !is_link_local6(packet->tuple.saddr) || entry->ifindex == end->ifindex;
}

/* Whether the packet is an answer to the flow of an entry. Of a datagram whose source was or will be translated
 * the flow goes on as long as it has an entry. */
static __always_inline bool flow_is_answered(const struct ct_entry *entry, const struct packet *packet,
					     __u32 now_s)
{
	if (packet_opens_tcp(packet) || (flow_is_denied(entry) && !(entry->flags & CT_SEEN_REPLY)))
		return false;
	return packet->tuple.proto == IPPROTO_TCP || entry->rev_nat ||
	       (entry->flags & CT_OTHER_PORT) || !ct_expired(entry, now_s);
}

/* The verdict about a flow that has an entry: the entry's own if it was made for the same identity by the
 * same generation, else a new one, which it keeps. 0 or a refusal. */
static __always_inline int flow_judge(ctx_t *ctx, const struct packet *packet, const struct flow_end *end,
				      struct ct_entry *entry, __u32 direction, __u32 state)
{
	__u64 verdict = ct_verdict(entry);
	int refused;

	if (verdict == flow_allowed(end))
		return 0;
	if (verdict == flow_denied(end))
		return REFUSE(DROP_POLICY_DENIED);
	refused = policy_verdict(ctx, packet, end, direction,
				 verdict || state == FLOW_REPLY ? state : FLOW_NEW);
	ct_set_verdict(entry, refused ? flow_denied(end) : flow_allowed(end));
	return refused;
}

/* The verdict about an ICMP error by the flow that it is about. Its sender may be any router on the way, so the
 * identity is that of the flow. 0 or a refusal. */
static __always_inline int flow_judge_error(ctx_t *ctx, const struct packet *packet,
					    const struct flow_end *end, const struct ct_entry *entry,
					    __u32 direction)
{
	union ct_verdict verdict = { .whole = ct_verdict(entry) };
	struct flow_end related = *end;

	if (verdict.generation == policy_generation)
		return 0;
	if (verdict.generation == (policy_generation | VERDICT_DENIED))
		return REFUSE(DROP_POLICY_DENIED);
	if (verdict.generation)
		related.remote_identity = verdict.remote_identity;
	return policy_verdict(ctx, packet, &related, direction, FLOW_RELATED);
}

/* Whether an error is about a packet from or to this workload, and not about one of somebody else. */
static __always_inline bool flow_error_is_own(ctx_t *ctx, const struct packet *packet, __u32 direction,
					      const bool v6)
{
	struct packet_addresses addresses = {};

	if (packet_addresses(ctx, packet, &addresses, v6))
		return false;
	return direction == CT_EGRESS ?
		       address_equal(addresses.source, packet->tuple.saddr, v6) :
		       address_equal(addresses.destination, packet->tuple.daddr, v6);
}

/* The functions from here on are global and for both families, which the verifier looks at once. */

/* An error that leaves (CT_EGRESS) or reaches a workload. 0 or a refusal. */
__noinline int flow_error(ctx_t *ctx, const struct packet *packet, const struct flow_end *end,
			  __u32 direction)
{
	__u32 other = direction == CT_EGRESS ? CT_INGRESS : CT_EGRESS;
	struct ct_entry *entry;
	bool v6;

	if (!packet || !end)
		return REFUSE(DROP_POLICY_DENIED);
	v6 = packet->flags & PACKET_V6;
	if (flow_error_is_own(ctx, packet, direction, v6)) {
		entry = ct_lookup_reply(packet, other, v6);
		if (flow_is_of(entry, packet, end, v6)) {
			flow_note_related(packet, true);
			return flow_judge_error(ctx, packet, end, entry, other);
		}
		entry = ct_lookup(&packet->tuple, direction, v6);
		if (flow_is_of(entry, packet, end, v6)) {
			flow_note_related(packet, false);
			return flow_judge_error(ctx, packet, end, entry, direction);
		}
	}
	return policy_verdict(ctx, packet, end, direction, FLOW_NEW);
}

/* A packet that opens a flow or continues it on the way that it was opened. 0 or a refusal. */
__noinline int flow_forward(ctx_t *ctx, const struct packet *packet, const struct flow_end *end,
			    __u32 direction)
{
	struct ct_new new = { .now_s = ct_now_s(), .policy_generation = policy_generation };
	struct ct_entry *entry;
	int refused;
	bool v6;

	if (!packet || !end)
		return REFUSE(DROP_POLICY_DENIED);
	v6 = packet->flags & PACKET_V6;
	entry = ct_lookup(&packet->tuple, direction, v6);
	if (flow_is_of(entry, packet, end, v6) && ct_continues(entry, packet, new.now_s)) {
		refused = flow_judge(ctx, packet, end, entry, direction, FLOW_ESTABLISHED);
		/* Load balancing has seen those that leave. */
		if (!refused && direction == CT_INGRESS)
			ct_seen(ctx, entry, packet, false, false, new.now_s);
		return refused;
	}
	refused = policy_verdict(ctx, packet, end, direction, FLOW_NEW);
	if (refused)
		return refused;
	new.ifindex = end->ifindex;
	new.direction = direction;
	new.tcp_flags = packet->tcp_flags;
	new.remote_identity = end->remote_identity;
	flow_note_new(packet);
	return ct_create(&packet->tuple, &new, v6);
}

__noinline int flow_leaves(ctx_t *ctx, const struct packet *packet, const struct flow_end *end)
{
	__u32 now_s = ct_now_s();
	struct ct_entry *entry;
	int refused;
	bool v6;

	if (!packet || !end)
		return REFUSE(DROP_POLICY_DENIED);
	if (packet->flags & PACKET_ICMP_ERROR)
		return flow_error(ctx, packet, end, CT_EGRESS);
	if (packet->flags & PACKET_NO_PORTS)
		return policy_verdict(ctx, packet, end, CT_EGRESS, FLOW_NEW);
	v6 = packet->flags & PACKET_V6;
	entry = ct_lookup_reply(packet, CT_INGRESS, v6);
	if (!flow_is_of(entry, packet, end, v6) || !flow_is_answered(entry, packet, now_s))
		return flow_forward(ctx, packet, end, CT_EGRESS);
	refused = flow_judge(ctx, packet, end, entry, CT_INGRESS, FLOW_REPLY);
	if (!refused)
		ct_seen(ctx, entry, packet, true, false, now_s);
	return refused;
}

__noinline int flow_reaches(ctx_t *ctx, const struct packet *packet, const struct flow_end *end)
{
	if (!packet || !end)
		return REFUSE(DROP_POLICY_DENIED);
	if (packet->flags & PACKET_ICMP_ERROR)
		return flow_error(ctx, packet, end, CT_INGRESS);
	if (packet->flags & PACKET_NO_PORTS)
		return policy_verdict(ctx, packet, end, CT_INGRESS, FLOW_NEW);
	return flow_forward(ctx, packet, end, CT_INGRESS);
}

/* entry: of CT_EGRESS. 0, FLOW_NONE or a refusal. Who translates the packet back notes that it was seen. */
static __always_inline int flow_answered(ctx_t *ctx, const struct packet *packet, const struct flow_end *end,
					 struct ct_entry *entry, const bool v6)
{
	if (!flow_is_of(entry, packet, end, v6))
		return FLOW_NONE;
	if (packet->flags & PACKET_ICMP_ERROR)
		return flow_error_is_own(ctx, packet, CT_INGRESS, v6) ?
			       flow_judge_error(ctx, packet, end, entry, CT_EGRESS) :
			       FLOW_NONE;
	if (!flow_is_answered(entry, packet, ct_now_s()))
		return FLOW_NONE;
	return flow_judge(ctx, packet, end, entry, CT_EGRESS, FLOW_REPLY);
}

/* Whether it is neighbour discovery on the link between a workload and the node, without which they do not
 * find each other. */
static __always_inline bool flow_is_discovery(ctx_t *ctx, const struct packet *packet,
					      const struct flow_end *end)
{
	__be32 destination[4];
	__u8 type;

	if (!(packet->flags & PACKET_V6) || packet->tuple.proto != IPPROTO_ICMPV6 ||
	    packet->ttl != ND_HOP_LIMIT || ctx_load_bytes(ctx, packet->l4, &type, sizeof(type)) ||
	    type < ND_ROUTER_SOLICITATION || type > ND_REDIRECT)
		return false;
	if (end->remote_identity == IDENTITY_HOST)
		return true;
	return !ctx_load_bytes(ctx, packet->l3 + __builtin_offsetof(struct ipv6hdr, daddr), destination,
			       sizeof(destination)) &&
	       is_multicast6(destination);
}

/* A packet without a tuple. 0 or a refusal. */
static __noinline __attribute__((unused)) int flow_other(ctx_t *ctx, const struct packet *packet,
							 const struct flow_end *end, __u32 direction)
{
	if (flow_is_discovery(ctx, packet, end))
		return 0;
	return policy_verdict(ctx, packet, end, direction, FLOW_NEW);
}

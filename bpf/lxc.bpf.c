/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* The host's end of a workload's veth, also as a port of a bridge.
 *
 *	from_pod (ingress): where the workload has its network from us, it sends in nobody else's name
 *		(lib/endpoint.h). What it sends to a service goes to a backend. If that is the
 *		workload itself, it goes straight back with the loopback address as its source.
 *	from_other_pod (ingress): the same for the workload of another plugin on a node whose pod network
 *		is ours. It sends in whatever name that plugin allows, but in none of our workloads'.
 *	to_pod (egress): what backends answer gets the service's address as its source.
 *
 * What belongs to no service passes untouched, unless its port is that of a service's connection. Each flow of
 * a workload whose network is ours is tracked and judged at either end (lib/flow.h).
 */
#define CILIA_FLOWS	/* flows of workloads are judged: lib/flow.h */

#include "lib/deliver.h"
#include "lib/flow.h"
#include "lib/icmp.h"
#include "lib/lb_direct.h"
#include "lib/lb_return.h"

/* The packet under way, and the workloads of ours that send it and get it: on the stack there is no room for
 * them beside what is decided. Nothing interrupts a program of these hooks to run another one of them on the
 * same CPU. */
struct lxc_packet {
	struct packet packet;
	struct flow_end sender;
	struct flow_end receiver;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct lxc_packet);
	__uint(max_entries, 1);
} cilia_lxc_pkt SEC(".maps");

static __always_inline struct lxc_packet *packet_parsed(ctx_t *ctx, int *result)
{
	__u32 zero = 0;
	struct lxc_packet *under_way = bpf_map_lookup_elem(&cilia_lxc_pkt, &zero);

	if (under_way)
		*result = packet_parse(ctx, &under_way->packet, ETH_HLEN);
	return under_way;
}

static __always_inline bool is_loopback(const __be32 *address, const bool v6)
{
	if (!v6)
		return address[0] == loopback4;
	return address[0] == loopback6[0] && address[1] == loopback6[1] &&
	       address[2] == loopback6[2] && address[3] == loopback6[3];
}

/* What becomes of a packet, besides refusals. */
#define GO_ON 0
#define TURN_BACK 1		/* into the workload that it came from */
#define DIRECT 2		/* to the address that it has, and no service's */
#define NO_ANSWER 3		/* to a workload, and no answer to a flow that it opened */

/* The workload answers itself: both addresses become those that it began with. */
static __always_inline int hairpin_reply(ctx_t *ctx, struct packet *packet, const bool v6)
{
	struct ct_entry *entry = ct_lookup_reply(packet, CT_EGRESS, v6);
	__be32 self[4];
	int refused;

	if (!entry || !(entry->flags & CT_HAIRPIN))
		return GO_ON;
	address_copy(self, packet->tuple.saddr, true);
	refused = packet_set_destination(ctx, packet, self, packet->tuple.dport, v6);
	if (!refused)
		refused = lb_reverse(ctx, packet, entry, v6);
	return refused ? refused : TURN_BACK;
}

static __always_inline int from(ctx_t *ctx, struct packet *packet, const bool v6)
{
	struct lb_decision decision = {};
	int refused;

	if (is_loopback(packet->tuple.daddr, v6))
		return hairpin_reply(ctx, packet, v6);
	refused = lb_resolve(ctx, packet, &decision, LB_INSIDE, v6);
	if (refused == LB_PASS)
		return DIRECT;
	if (!refused)
		refused = lb_translate(ctx, packet, &decision, v6);
	if (refused)
		return refused;
	return decision.hairpin ? TURN_BACK : GO_ON;
}

PER_FAMILY(from, GO_ON)

static long return_slot(__u32 turn, struct lb_return *search)
{
	return lb_return_slot(turn, search, lb_until, LB_INSIDE);
}

static __always_inline int returns(struct packet *packet, const bool v6)
{
	lb_return(packet, return_slot, LB_INSIDE, v6);
	return GO_ON;
}

PER_FAMILY_OF(returns, GO_ON, packet, (struct packet *packet), packet)

/* Called by the program, not by the one above: the stack of a chain of calls is 512 bytes. */
static __always_inline int direct(ctx_t *ctx, struct packet *packet, const bool v6)
{
	return lb_direct(ctx, packet, 0, v6);
}

PER_FAMILY(direct, GO_ON)

static __always_inline int to(ctx_t *ctx, struct packet *packet, struct flow_end *end, const bool v6)
{
	struct ct_entry *entry = ct_lookup_reply(packet, CT_EGRESS, v6);
	struct tuple opener = {};
	int done;

	/* What entered through a device of the node is translated where it leaves again. */
	if (!entry || (entry->flags & CT_NODE_PORT))
		return NO_ANSWER;
	/* The backend opens a connection of its own from the port that it serves at. */
	if (packet_opens_tcp(packet)) {
		tuple_exchange(&opener, &packet->tuple);
		if (ct_over(entry, ct_now_s()))
			ct_delete(&opener, CT_EGRESS, v6);
		return NO_ANSWER;
	}
	if (pod_network && end->ifindex) {
		done = flow_answered(ctx, packet, end, entry, v6);
		if (done)
			return done == FLOW_NONE ? NO_ANSWER : done;
	}
	return entry->rev_nat ? lb_reverse(ctx, packet, entry, v6) :
				lb_direct_answer(ctx, packet, entry, v6);
}

PER_FAMILY_WITH(to, struct flow_end, GO_ON)

/* What a workload of ours gets: 0 or a refusal. */
static __always_inline int reaches(ctx_t *ctx, struct packet *packet, struct flow_end *end, bool other)
{
	int done;

	if (other)
		return flow_other(ctx, packet, end, CT_INGRESS);
	done = BY_FAMILY(packet->flags & PACKET_V6, to, ctx, packet, end);
	if (done != NO_ANSWER)
		return done;
	return flow_reaches(ctx, packet, end);
}

static __always_inline int refuse(ctx_t *ctx, const struct packet *packet, int refused)
{
	__s16 reason = refusal_reason(refused);

	drop_refused(ctx, refused, DIRECTION_EGRESS);
	if (reason == DROP_NO_BACKEND || reason == DROP_NO_SERVICE)
		return icmp_unreachable(ctx, packet);
	return CTX_DROP;
}

/* What a workload of ours sends: 0 or a refusal. */
static __always_inline int leaves(ctx_t *ctx, struct packet *packet, struct flow_end *end, bool other)
{
	bool v6 = packet->flags & PACKET_V6;

	if (other)
		return ctx_protocol(ctx) == bpf_htons(ETH_P_ARP) ? 0 : flow_other(ctx, packet, end, CT_EGRESS);
	if (packet->verdict == flow_allowed(end) && !(v6 && is_link_local6(packet->tuple.saddr)))
		return 0;
	return flow_leaves(ctx, packet, end);
}

static __always_inline int to_stack(ctx_t *ctx, const struct packet *packet)
{
	trace_to(ctx, packet, TRACE_TO_STACK, DIRECTION_EGRESS, 0);
	return CTX_OK;
}

/* Where a packet of a workload of ours goes on: to another one of this node, or by the stack. Both ends are
 * judged here, as the program of the other one does not see it. */
static __always_inline int goes_on(ctx_t *ctx, struct lxc_packet *under_way, bool other)
{
	struct flow_end *sender = &under_way->sender, *receiver = &under_way->receiver;
	struct packet *packet = &under_way->packet;
	const struct endpoint_place *place = deliver_to(ctx, packet);
	int refused;

	sender->remote_identity =
		place ? place->identity :
			flow_remote_identity(ctx, packet, false, packet->flags & PACKET_V6);
	refused = leaves(ctx, packet, sender, other);
	if (refused)
		return drop_refused(ctx, refused, DIRECTION_EGRESS);
	if (!place || place->ifindex == ctx_ifindex(ctx))
		return to_stack(ctx, packet);
	receiver->identity = place->identity;
	receiver->remote_identity = sender->identity;
	receiver->ifindex = place->ifindex;
	receiver->id = place->id;
	receiver->itself = false;
	refused = reaches(ctx, packet, receiver, other);
	if (refused)
		return drop_refused(ctx, refused, DIRECTION_INGRESS | AT_SENDER);
	return deliver(ctx, packet, place, DIRECTION_INGRESS | AT_SENDER);
}

/* What a workload of ours answers itself through a service, as long as it has the addresses of the workload. 0,
 * FLOW_NONE if it is no such answer, or a refusal. */
__noinline int answers_itself(ctx_t *ctx, const struct packet *packet, struct flow_end *end)
{
	struct ct_entry *entry;
	int done;
	bool v6;

	if (!packet || !end)
		return FLOW_NONE;
	v6 = packet->flags & PACKET_V6;
	if (!is_loopback(packet->tuple.daddr, v6))
		return FLOW_NONE;
	entry = ct_lookup_reply(packet, CT_EGRESS, v6);
	if (!entry || !(entry->flags & CT_HAIRPIN))
		return FLOW_NONE;
	end->itself = true;
	done = flow_answered(ctx, packet, end, entry, v6);
	if (done == FLOW_NONE)
		done = policy_verdict(ctx, packet, end, CT_INGRESS, FLOW_NEW);
	return done ? done : flow_leaves(ctx, packet, end);
}

static __always_inline int redirected_back(ctx_t *ctx, const struct packet *packet)
{
	if (ctx_swap_macs(ctx))
		return drop_refused(ctx, REFUSE(DROP_WRITE_ERROR), DIRECTION_EGRESS);
	trace_to(ctx, packet, TRACE_TO_ENDPOINT, DIRECTION_INGRESS | AT_SENDER, ctx_ifindex(ctx));
	return ctx_redirect(ctx, ctx_ifindex(ctx));
}

/* Back into the workload, which reaches itself through a service. */
static __always_inline int turns_back(ctx_t *ctx, struct packet *packet, struct flow_end *end,
				      bool judged)
{
	int refused;

	if (!judged) {
		end->itself = true;
		refused = leaves(ctx, packet, end, false);
		if (refused)
			return drop_refused(ctx, refused, DIRECTION_EGRESS);
		refused = flow_reaches(ctx, packet, end);
		if (refused)
			return drop_refused(ctx, refused, DIRECTION_INGRESS | AT_SENDER);
	}
	return redirected_back(ctx, packet);
}

/* Service or direct: GO_ON, TURN_BACK or a refusal. */
static __always_inline int resolves(ctx_t *ctx, struct packet *packet)
{
	bool v6 = packet->flags & PACKET_V6;
	int result = BY_FAMILY(v6, from, ctx, packet);

	if (result == LB_RETURN) {
		BY_FAMILY(v6, returns, packet);
		result = BY_FAMILY(v6, from, ctx, packet);
	}
	return result == DIRECT ? BY_FAMILY(v6, direct, ctx, packet) : result;
}

/* Of a workload that has its network from us. */
static __always_inline int sends(ctx_t *ctx)
{
	const struct endpoint *endpoint = endpoint_of(ctx_ifindex(ctx));
	int result = endpoint_verify(ctx, endpoint), judged = FLOW_NONE;
	struct lxc_packet *under_way;
	struct flow_end *sender;
	struct packet *packet;

	if (result == ENDPOINT_ANSWERED)
		return ctx_redirect(ctx, ctx_ifindex(ctx));
	if (result || !endpoint)
		return drop_refused(ctx, result, DIRECTION_EGRESS);
	under_way = packet_parsed(ctx, &result);
	if (!under_way)
		return CTX_DROP;
	packet = &under_way->packet;
	sender = &under_way->sender;
	sender->identity = sender->remote_identity = endpoint->identity;
	sender->ifindex = ctx_ifindex(ctx);
	sender->id = endpoint->id;
	sender->itself = false;
	if (result == PACKET_OTHER)
		return goes_on(ctx, under_way, true);
	if (!result) {
		judged = answers_itself(ctx, packet, sender);
		result = judged < 0 ? judged : resolves(ctx, packet);
	}
	if (result < 0)
		return refuse(ctx, packet, result);
	return result == TURN_BACK ? turns_back(ctx, packet, sender, !judged) :
				     goes_on(ctx, under_way, false);
}

/* Of one that has it from another plugin. */
static __always_inline int sends_as_other(ctx_t *ctx)
{
	int result = pod_network ? endpoint_of_others(ctx) : 0;
	struct lxc_packet *under_way;
	struct packet *packet;

	if (result)
		return drop_refused(ctx, result, DIRECTION_EGRESS);
	under_way = packet_parsed(ctx, &result);
	if (!under_way)
		return CTX_DROP;
	packet = &under_way->packet;
	if (result == PACKET_OTHER)
		return to_stack(ctx, packet);
	if (!result)
		result = resolves(ctx, packet);
	if (result < 0)
		return refuse(ctx, packet, result);
	if (result != TURN_BACK)
		return to_stack(ctx, packet);
	return redirected_back(ctx, packet);
}

SEC("tc")
int from_pod(ctx_t *ctx)
{
	trace_from(ctx, TRACE_FROM_ENDPOINT, DIRECTION_EGRESS);
	return pod_network ? sends(ctx) : sends_as_other(ctx);
}

SEC("tc")
int from_other_pod(ctx_t *ctx)
{
	trace_from(ctx, TRACE_FROM_ENDPOINT, DIRECTION_EGRESS);
	return sends_as_other(ctx);
}

/* What the stack sends to a device without a workload of ours: another plugin's, or one that is not ready yet
 * and gets nothing but what finds it. 0 or a refusal. */
static __always_inline int reaches_other(ctx_t *ctx, struct packet *packet, struct flow_end *end,
					 bool other)
{
	int refused;

	if (flow_is_expected(ctx, packet, packet->flags & PACKET_V6))
		return other && flow_is_discovery(ctx, packet, end) ? 0 :
								      REFUSE(DROP_ENDPOINT_NOT_READY);
	refused = other ? 0 : BY_FAMILY(packet->flags & PACKET_V6, to, ctx, packet, end);
	return refused < 0 ? refused : 0;
}

/* To a workload by the stack: from the node, from outside, or from another workload. */
static __always_inline int arrives(ctx_t *ctx, struct lxc_packet *under_way, bool other)
{
	const struct endpoint *endpoint = endpoint_of(ctx_ifindex(ctx));
	struct flow_end *receiver = &under_way->receiver;
	struct packet *packet = &under_way->packet;

	if (other && ctx_protocol(ctx) != bpf_htons(ETH_P_IP) &&
	    ctx_protocol(ctx) != bpf_htons(ETH_P_IPV6))
		return 0;
	receiver->remote_identity =
		flow_remote_identity(ctx, packet, true, packet->flags & PACKET_V6);
	receiver->ifindex = endpoint ? ctx_ifindex(ctx) : 0;
	receiver->identity = endpoint ? endpoint->identity : 0;
	receiver->id = endpoint ? endpoint->id : 0;
	receiver->itself = false;
	return endpoint ? reaches(ctx, packet, receiver, other) :
			  reaches_other(ctx, packet, receiver, other);
}

SEC("tc")
int to_pod(ctx_t *ctx)
{
	int result = 0;
	struct lxc_packet *under_way = packet_parsed(ctx, &result);
	struct packet *packet;

	if (!under_way)
		return CTX_DROP;
	packet = &under_way->packet;
	if (result >= 0 && pod_network)
		result = arrives(ctx, under_way, result == PACKET_OTHER);
	else if (!result)
		result = BY_FAMILY(packet->flags & PACKET_V6, to, ctx, packet, &under_way->receiver);
	if (result < 0)
		return drop_refused(ctx, result, DIRECTION_INGRESS);
	trace_to(ctx, packet, TRACE_TO_ENDPOINT, DIRECTION_INGRESS, ctx_ifindex(ctx));
	return CTX_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";

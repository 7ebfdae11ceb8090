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
 * What belongs to no service passes untouched, unless its port is that of a service's connection.
 */
#include "lib/deliver.h"
#include "lib/icmp.h"
#include "lib/lb_direct.h"
#include "lib/lb_return.h"

/* The packet under way: on the stack there is no room for it beside what is decided about it. Nothing
 * interrupts a program of these hooks to run another one of them on the same CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct packet);
	__uint(max_entries, 1);
} cilia_lxc_pkt SEC(".maps");

static __always_inline struct packet *packet_parsed(ctx_t *ctx, int *result)
{
	__u32 zero = 0;
	struct packet *packet = bpf_map_lookup_elem(&cilia_lxc_pkt, &zero);

	if (packet)
		*result = packet_parse(ctx, packet, ETH_HLEN);
	return packet;
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

static __always_inline int to(ctx_t *ctx, struct packet *packet, const bool v6)
{
	struct ct_entry *entry = ct_lookup_reply(packet, CT_EGRESS, v6);
	struct tuple opener = {};

	/* What entered through a device of the node is translated where it leaves again. */
	if (!entry || (entry->flags & CT_NODE_PORT))
		return GO_ON;
	/* The backend opens a connection of its own from the port that it serves at. */
	if (packet_opens_tcp(packet)) {
		tuple_exchange(&opener, &packet->tuple);
		if (ct_over(entry, ct_now_s()))
			ct_delete(&opener, CT_EGRESS, v6);
		return GO_ON;
	}
	return entry->rev_nat ? lb_reverse(ctx, packet, entry, v6) :
				lb_direct_answer(ctx, packet, entry, v6);
}

PER_FAMILY(to, GO_ON)

static __always_inline int refuse(ctx_t *ctx, const struct packet *packet, int refused)
{
	__s16 reason = refusal_reason(refused);

	drop_refused(ctx, refused, DIRECTION_EGRESS);
	if (reason == DROP_NO_BACKEND || reason == DROP_NO_SERVICE)
		return icmp_unreachable(ctx, packet);
	return CTX_DROP;
}

/* Where a packet of a workload goes on: to another one of this node, or by the stack. */
static __always_inline int goes_on(ctx_t *ctx, struct packet *packet, bool other, const bool ours)
{
	const struct endpoint_place *place;
	int refused = 0;

	if (!ours)
		return CTX_OK;
	place = deliver_to(ctx, packet);
	if (!place || place->ifindex == ctx_ifindex(ctx))
		return CTX_OK;
	if (!other)
		refused = BY_FAMILY(packet->flags & PACKET_V6, to, ctx, packet);
	if (refused < 0)
		return drop_refused(ctx, refused, DIRECTION_INGRESS);
	return deliver(ctx, packet, place, DIRECTION_INGRESS);
}

/* ours: the workload has its network from us. */
static __always_inline int sends(ctx_t *ctx, const bool ours)
{
	int result = ours ? endpoint_verify(ctx) : pod_network ? endpoint_of_others(ctx) : 0;
	struct packet *packet;

	if (result == ENDPOINT_ANSWERED)
		return ctx_redirect(ctx, ctx_ifindex(ctx));
	if (result)
		return drop_refused(ctx, result, DIRECTION_EGRESS);
	packet = packet_parsed(ctx, &result);
	if (!packet)
		return CTX_DROP;
	if (result == PACKET_OTHER)
		return goes_on(ctx, packet, true, ours);
	if (!result)
		result = BY_FAMILY(packet->flags & PACKET_V6, from, ctx, packet);
	if (result == LB_RETURN) {
		BY_FAMILY(packet->flags & PACKET_V6, returns, packet);
		result = BY_FAMILY(packet->flags & PACKET_V6, from, ctx, packet);
	}
	if (result == DIRECT)
		result = BY_FAMILY(packet->flags & PACKET_V6, direct, ctx, packet);
	if (result < 0)
		return refuse(ctx, packet, result);
	if (result != TURN_BACK)
		return goes_on(ctx, packet, false, ours);
	if (ctx_swap_macs(ctx))
		return drop_refused(ctx, REFUSE(DROP_WRITE_ERROR), DIRECTION_EGRESS);
	return ctx_redirect(ctx, ctx_ifindex(ctx));
}

SEC("tc")
int from_pod(ctx_t *ctx)
{
	return sends(ctx, pod_network);
}

SEC("tc")
int from_other_pod(ctx_t *ctx)
{
	return sends(ctx, false);
}

SEC("tc")
int to_pod(ctx_t *ctx)
{
	int result = 0;
	struct packet *packet = packet_parsed(ctx, &result);

	if (!packet)
		return CTX_DROP;
	if (result == PACKET_OTHER)
		return CTX_OK;
	if (!result)
		result = BY_FAMILY(packet->flags & PACKET_V6, to, ctx, packet);
	return result < 0 ? drop_refused(ctx, result, DIRECTION_INGRESS) : CTX_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";

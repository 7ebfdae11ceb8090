/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* A service's packet: find the frontend, find or choose its backend, track both, translate.
 *
 *	lb_resolve	decides and tracks, changes no byte
 *	lb_translate	client -> frontend becomes client -> backend
 *	lb_reverse	backend -> client becomes frontend -> client
 *
 * A connection keeps its backend while that has a row in the backend map, and finds it again under another
 * number (lb_return.h). The tuple behind the translation belongs to one frontend at a time: replies carry
 * nothing else by which to tell whose they are. Who finds it taken gets another backend, or another source
 * port.
 */
#include "cluster_nodes.h"
#include "ct.h"
#include "event.h"
#include "lb_choice.h"
#include "own_flow.h"
#include "redirect_skips.h"
#include "rewrite.h"
#include "switch.h"

#define LB_PASS 1		/* not ours */
#define LB_NEW 2		/* a connection that has no backend yet */
#define LB_RETURN 3		/* of a connection whose numbers are gone: see lb_return.h */

#define LB_CHOICES 4		/* backends tried for a tuple that nobody has */
#define LB_PORTS 8		/* then source ports */

/* Where a packet of a client comes from. */
#define LB_INSIDE 0		/* a workload of this node */
#define LB_OUTSIDE 1		/* a device of the node */

struct lb_decision {
	struct lb_target target;
	__u32 rev_nat;
	__be16 sport;		/* the client's behind the translation */
	bool hairpin;		/* the client is the backend */
};

/* A packet's frontend, and what is known of its connection. */
struct lb_asked {
	union lb_key key;
	const struct lb_service *svc;
	struct ct_entry *service;	/* of the tuple that the client sees, or NULL */
	bool continues;			/* the connection of that entry: its backend is decided */
	bool other_node;		/* svc is a node port that another node was asked for */
};

static __always_inline struct lb_service *lb_lookup(union lb_key *key, const struct tuple *tuple,
						    const bool outside, const bool v6)
{
	lb_key_of(key, tuple->daddr, tuple->dport, tuple->proto, v6);
	return outside ? lb_entry(key, v6) : lb_service(key, v6);
}

/* The node port that a packet to another node asks for, or NULL: every node has the frontend of the address
 * 0, which stands for all addresses of nodes. */
static __noinline struct lb_service *lb_node_port(union lb_key *key, const struct tuple *tuple,
						  bool outside, bool v6)
{
	struct lb_service *svc;

	if (!cluster_node_is_other(tuple->daddr, v6))
		return NULL;
	lb_key_any_address(key, v6);
	lb_key_scope(key, LB_SCOPE_EXTERNAL, v6);
	svc = outside ? lb_entry(key, v6) : lb_service(key, v6);
	return svc && svc->type == LB_TYPE_NODE_PORT ? svc : NULL;
}

/* What is sent to a service's address where no port serves must not wander between nodes and routers,
 * and neither must a part of a datagram whose port is unknown. */
static __always_inline int lb_no_frontend(const struct packet *packet, union lb_key *key,
					  const bool v6)
{
	struct tuple wildcard = {};

	address_copy(wildcard.daddr, packet->tuple.daddr, true);
	if (!lb_lookup(key, &wildcard, true, v6))
		return LB_PASS;
	if (packet->flags & PACKET_NO_PORTS)
		return REFUSE(DROP_FRAG_NOT_FOUND);
	return REFUSE(DROP_NO_SERVICE);
}

/* Whether the service's source ranges let the client in. */
static __always_inline bool lb_source_allowed(const struct lb_service *svc,
					      const struct tuple *tuple, const bool v6)
{
	bool deny = svc->flags & LB_SVC_SOURCE_DENY;
	const struct lb_source *found;

	if (!(svc->flags & LB_SVC_SOURCE_RANGE))
		return true;
	if (v6) {
		struct lb6_source_key key = { .prefix_bits = 32 + 128, .rev_nat = svc->rev_nat };

		address_copy(key.address, tuple->saddr, true);
		found = bpf_map_lookup_elem(&cilia_lb6_src, &key);
	} else {
		struct lb4_source_key key = {
			.prefix_bits = 32 + 32,
			.rev_nat = svc->rev_nat,
			.address = tuple->saddr[0],
		};

		found = bpf_map_lookup_elem(&cilia_lb4_src, &key);
	}
	if (!found || (found->meaning != LB_SOURCE_EITHER &&
		       found->meaning != (deny ? LB_SOURCE_KEPT_OUT : LB_SOURCE_LET_IN)))
		return deny;
	return !deny;
}

/* Count a packet to a service that someone else translates: a proxy on the node, or whoever the
 * service is delegated to, takes it from the stack. */
static __always_inline int lb_delegated(ctx_t *ctx, const bool outside)
{
	struct metrics_key key = {
		.line = __LINE__,
		.file = file_number(__FILE_NAME__),
		.direction = outside ? DIRECTION_INGRESS : DIRECTION_EGRESS,
	};

	metrics_count(&key, ctx_length(ctx));
	return LB_PASS;
}

/* Whether this client may use this frontend here: 0, LB_PASS or a refusal. */
static __always_inline int lb_admit(ctx_t *ctx, const struct lb_service *svc,
				    const struct tuple *tuple, const bool outside, const bool v6)
{
	if (svc->flags & LB_SVC_LOOPBACK)
		return REFUSE(DROP_LOOPBACK_ONLY);
	if (outside && (svc->flags & LB_SVC_NON_ROUTABLE))
		return REFUSE(DROP_IS_CLUSTER_IP);
	if ((outside || (svc->flags & LB_SVC_SOURCE_INSIDE)) && !lb_source_allowed(svc, tuple, v6))
		return REFUSE(DROP_NOT_IN_SRC_RANGE);
	if (svc->flags & (LB_SVC_L7 | LB_SVC_DELEGATE))
		return lb_delegated(ctx, outside);
	return 0;
}

/* The tuple that a target gives to the client's packet. A workload that is its own backend would
 * answer itself without us, so it gets a client with another address; the way from outside leads out
 * of the node again. */
static __always_inline void lb_translated(struct tuple *to, const struct tuple *from,
					  const struct lb_target *target, const bool outside,
					  const bool v6)
{
	*to = *from;
	if (!outside && address_equal(target->address, from->saddr, v6)) {
		if (v6) {
			for (int i = 0; i < 4; i++)
				to->saddr[i] = loopback6[i];
		} else {
			to->saddr[0] = loopback4;
		}
	}
	address_copy(to->daddr, target->address, v6);
	to->dport = target->port;
}

/* The backend of the connection that this packet continues: 0, LB_NEW if it needs another one, or LB_RETURN
 * if its numbers are gone. A new connection on the same ports leaves a backend that is on its way out. */
static __always_inline int lb_continue(struct lb_target *target, const struct ct_entry *entry,
				       const struct packet *packet, const struct lb_service *svc,
				       __u32 now_s, const bool v6)
{
	if (!entry || !ct_continues(entry, packet, now_s))
		return LB_NEW;
	if (entry->rev_nat != svc->rev_nat || !lb_target(target, entry->backend_id, v6))
		return entry->rev_nat && !(packet->flags & PACKET_SOUGHT) ? LB_RETURN : LB_NEW;
	return target->state == LB_BE_ACTIVE || !packet_opens_tcp(packet) || !svc->count ? 0 :
											   LB_NEW;
}

/* Whether the entry behind a translation is that of this client's port and frontend, whatever number that
 * had. The node port of two nodes is two frontends with one id. */
__noinline int lb_is_of(const struct ct_entry *behind, const struct tuple *to, const struct tuple *asked,
			__u32 rev_nat)
{
	if (!behind || !to || !asked ||
	    (behind->flags & CT_OTHER_PORT ? behind->nat_port : to->sport) != asked->sport)
		return false;
	if (behind->frontend_port ? !rev_nat || behind->frontend_port != asked->dport :
				    behind->rev_nat != rev_nat)
		return false;
	/* The words behind an IPv4 address are 0 on both sides. */
	return (!behind->frontend_port && !(behind->flags & CT_OTHER_NODE)) ||
	       address_equal(behind->nat_address, asked->daddr, true);
}

/* Tell an entry its frontend and the numbers of today: they differ after a Service was made anew, and an
 * earlier version wrote numbers only. */
__noinline int lb_name(struct ct_entry *behind, const struct ct_new *new, const struct tuple *asked)
{
	if (!behind || !new || !asked)
		return 0;
	address_copy(behind->nat_address, asked->daddr, true);
	behind->frontend_port = new->frontend_port;
	behind->rev_nat = new->rev_nat;
	behind->backend_id = new->backend_id;
	return 0;
}

/* The entry behind the translation, under which replies are found. */
static __always_inline int lb_track(ctx_t *ctx, const struct packet *packet, struct ct_entry *entry,
				    const struct tuple *to, struct ct_new *new, const bool v6)
{
	__be16 sport = packet->tuple.sport;

	new->direction = CT_EGRESS;
	new->frontend_port = new->rev_nat ? packet->tuple.dport : 0;
	if (entry && lb_is_of(entry, to, &packet->tuple, new->rev_nat) &&
	    ct_continues(entry, packet, new->now_s)) {
		if (entry->frontend_port != new->frontend_port || entry->rev_nat != new->rev_nat)
			lb_name(entry, new, &packet->tuple);
		ct_seen(ctx, entry, packet, false, false, new->now_s);
		return 0;
	}
	/* An ICMP error is no beginning. */
	if (packet->flags & PACKET_ICMP_ERROR)
		return 0;
	flow_note_new(packet);
	return ct_create_snat(to, new, packet->tuple.daddr, new->flags & CT_OTHER_PORT ? sport : 0, v6);
}

/* Whether another proxy has the connection that this packet begins, or has begun without us: one that has
 * no entry, or that of an earlier connection on the same ports, which goes. */
static __always_inline bool lb_left_to_others(const struct packet *packet,
					      const struct ct_entry *service, __u32 now_s,
					      const bool v6)
{
	__u32 state = switch_state();

	if (state == SWITCH_TAKE_OVER)
		return packet->tuple.proto == IPPROTO_TCP && !packet_opens_tcp(packet) &&
		       (!service || ct_over(service, now_s));
	if (state != SWITCH_HAND_BACK)
		return false;
	if (service)
		ct_delete(&packet->tuple, CT_SERVICE, v6);
	return true;
}

/* Whether a packet that belongs to no connection of a frontend answers the node itself, from the port of
 * one. A SYN answers nobody; who has asked the frontend before is its client. */
static __always_inline bool lb_answers_node(ctx_t *ctx, const struct packet *packet,
					    const struct lb_asked *asked, const bool v6)
{
	if (asked->service || packet_opens_tcp(packet))
		return false;
	return own_flow_answers(ctx, &packet->tuple, v6);
}

/* The node port of another node that a workload asks for. It is served here, with a backend of all: the
 * backend may be on this node, and would answer past the node that was asked. Where only the backends of
 * the node that was asked serve, that one is left to choose. */
static __always_inline struct lb_service *lb_asked_elsewhere(struct lb_asked *asked,
							     const struct tuple *tuple, const bool v6)
{
	struct lb_service *svc = lb_node_port(&asked->key, tuple, false, v6);

	return svc && !(svc->flags & LB_SVC_EXT_LOCAL) ? svc : NULL;
}

/* CT_OTHER_NODE where the frontend is that of the address 0, else 0. Computed without a branch: the verifier
 * then sees one state with either flag, not all that follows twice. */
static __always_inline __u16 lb_other_node(const union lb_key *key, const bool v6)
{
	__u64 words = key->v4.address;

	if (v6)
		words = (__u64)key->v6.address[0] | key->v6.address[1] | key->v6.address[2] |
			key->v6.address[3];
	asm volatile("%[words] += -1; %[words] >>= 63" : [words] "+r"(words));
	return words * CT_OTHER_NODE;
}

/* Find the frontend that a packet of a client asks for, or NULL. */
static __always_inline void lb_find_frontend(struct lb_asked *asked, const struct tuple *tuple,
					     const bool outside, const bool v6)
{
	asked->svc = lb_lookup(&asked->key, tuple, outside, v6);
	if (__builtin_expect(!asked->svc, 0) && !outside)
		asked->svc = lb_asked_elsewhere(asked, tuple, v6);
}

/* Find the frontend of a packet of a client, and its connection: 0, LB_PASS, LB_RETURN or a refusal. */
static __always_inline int lb_find(ctx_t *ctx, const struct packet *packet, struct lb_asked *asked,
				   struct lb_decision *decision, __u32 now_s, const bool outside,
				   const bool v6)
{
	const struct tuple *tuple = &packet->tuple;
	int how, refused;

	lb_find_frontend(asked, tuple, outside, v6);
	if (!asked->svc)
		return switch_hands_back() ? LB_PASS : lb_no_frontend(packet, &asked->key, v6);
	asked->service = ct_lookup(tuple, CT_SERVICE, v6);
	how = lb_continue(&decision->target, asked->service, packet, asked->svc, now_s, v6);
	asked->continues = !how;
	if (how == LB_NEW && ((packet->flags & PACKET_ICMP_ERROR) ||
			      (!outside && redirect_skips_packet(asked->svc, tuple, v6)) ||
			      lb_answers_node(ctx, packet, asked, v6) ||
			      lb_left_to_others(packet, asked->service, now_s, v6)))
		return LB_PASS;
	decision->rev_nat = asked->svc->rev_nat;
	refused = lb_admit(ctx, asked->svc, tuple, outside, v6);
	if (refused)
		return refused;
	return how == LB_RETURN ? LB_RETURN : 0;
}

/* The backend: that of the connection, or the choice for a new one; false if nobody serves. Another try
 * for a tuple that is taken is at random, whatever the algorithm. */
static __always_inline bool lb_pick(struct lb_asked *asked, struct lb_decision *decision,
				    const struct tuple *tuple, bool again, const bool v6)
{
	if (asked->continues)
		return true;
	return again ? lb_random(&decision->target, &asked->key, asked->svc, v6) :
		       lb_choose(&decision->target, &asked->key, asked->svc, tuple, v6);
}

/* Whether the tuple behind a translation belongs to another connection: another frontend's, or one that
 * has got this port. */
static __always_inline bool lb_taken(const struct packet *packet, const struct ct_entry *behind,
				     const struct tuple *to, const struct ct_new *new)
{
	if (!behind || lb_is_of(behind, to, &packet->tuple, new->rev_nat) || ct_over(behind, new->now_s))
		return false;
	/* Nothing tells the end of a datagram's own flow to a backend. */
	return to->proto == IPPROTO_TCP || behind->rev_nat || (behind->flags & CT_OTHER_PORT);
}

/* Give the client another port, under which no connection to this backend is: the entry there, which is
 * over, or NULL. to->sport stays as it is if none is found. */
static __noinline struct ct_entry *lb_other_port(struct tuple *to, __u32 now_s, bool v6)
{
	struct ct_entry *behind;
	__be16 sport = to->sport;

	for (int i = 0; i < LB_PORTS; i++) {
		to->sport = bpf_htons(1024 + bpf_get_prandom_u32() % (65536 - 1024));
		behind = ct_lookup(to, CT_EGRESS, v6);
		if (to->sport != sport && (!behind || ct_over(behind, now_s)))
			return behind;
	}
	to->sport = sport;
	return NULL;
}

/* The port that the connection has behind the translation. */
static __always_inline void lb_keep_port(struct tuple *to, const struct lb_asked *asked)
{
	if (asked->continues && (asked->service->flags & CT_OTHER_PORT))
		to->sport = asked->service->nat_port;
}

/* Whether another port would let a new connection go on beside the one that has its tuple. */
static __always_inline bool lb_may_change_port(const struct packet *packet)
{
	return !(packet->flags & (PACKET_ICMP_ERROR | PACKET_FRAGMENT)) &&
	       (packet->tuple.proto == IPPROTO_TCP || packet->tuple.proto == IPPROTO_UDP);
}

/* Make or refresh both entries of a connection; next_hop: where packets to another node go, or NULL. 0 or a
 * refusal. */
static __always_inline int lb_track_both(ctx_t *ctx, const struct packet *packet,
					 const struct lb_asked *asked, struct ct_entry *behind,
					 const struct tuple *to, struct ct_new *new,
					 const __be32 *next_hop, const bool v6)
{
	int refused;

	if (to->sport != packet->tuple.sport)
		new->flags |= CT_OTHER_PORT;
	refused = lb_track(ctx, packet, behind, to, new, v6);
	if (refused)
		return refused;
	if (asked->continues) {
		ct_seen(ctx, asked->service, packet, false, true, new->now_s);
		return 0;
	}
	new->direction = CT_SERVICE;
	flow_note_new(packet);
	return ct_create_snat(&packet->tuple, new, next_hop,
			      new->flags & CT_OTHER_PORT ? to->sport : 0, v6);
}

/* Decide for a packet of a workload: 0 with the decision, LB_PASS, LB_RETURN, or a refusal. */
static __always_inline int lb_resolve(ctx_t *ctx, const struct packet *packet,
				      struct lb_decision *decision, const bool outside,
				      const bool v6)
{
	const struct tuple *tuple = &packet->tuple;
	struct ct_new new = {
		.ifindex = ctx_ifindex(ctx),
		.now_s = ct_now_s(),
		.tcp_flags = packet->tcp_flags,
	};
	struct lb_asked asked;
	struct ct_entry *behind;
	struct tuple to;
	int refused, tries = 0;

	refused = lb_find(ctx, packet, &asked, decision, new.now_s, outside, v6);
	if (refused)
		return refused;
	new.rev_nat = decision->rev_nat;
	new.flags = lb_other_node(&asked.key, v6);
	for (;;) {
		if (!lb_pick(&asked, decision, tuple, tries, v6))
			return REFUSE(DROP_NO_BACKEND);
		lb_translated(&to, tuple, &decision->target, outside, v6);
		lb_keep_port(&to, &asked);
		behind = ct_lookup(&to, CT_EGRESS, v6);
		if (!lb_taken(packet, behind, &to, &new))
			break;
		asked.continues = false;
		if (++tries == LB_CHOICES) {
			if (!lb_may_change_port(packet))
				return REFUSE(DROP_CT_COLLISION);
			to.sport = tuple->sport;
			behind = lb_other_port(&to, new.now_s, v6);
			if (to.sport == tuple->sport)
				return REFUSE(DROP_CT_COLLISION);
			break;
		}
	}
	decision->sport = to.sport;
	decision->hairpin = !address_equal(to.saddr, tuple->saddr, v6);
	if (decision->hairpin)
		new.flags |= CT_HAIRPIN;
	new.backend_id = decision->target.id;
	return lb_track_both(ctx, packet, &asked, behind, &to, &new, NULL, v6);
}

/* Send the packet to the backend that was decided. 0 or a refusal. */
static __always_inline int lb_translate(ctx_t *ctx, struct packet *packet,
					const struct lb_decision *decision, const bool v6)
{
	__be32 source[4];
	int refused;

	if (decision->hairpin || decision->sport != packet->tuple.sport) {
		address_copy(source, packet->tuple.saddr, true);
		for (int i = 0; decision->hairpin && i < 4; i++)
			source[i] = v6 ? loopback6[i] : loopback4;
		refused = packet_set_source(ctx, packet, source, decision->sport, v6);
		if (refused)
			return refused;
	}
	return packet_set_destination(ctx, packet, decision->target.address, decision->target.port,
				      v6);
}

/* Whether there is a frontend at an address. any_address: a node port, at the address 0. */
static __noinline bool lb_serves(const __be32 *address, __be16 port, __u8 proto, bool any_address,
				 bool v6)
{
	union lb_key key;

	lb_key_of(&key, address, port, proto, v6);
	if (any_address)
		lb_key_any_address(&key, v6);
	return lb_entry(&key, v6);
}

/* The address of the frontend with a number; false if there is none. */
static __always_inline bool lb_frontend(__u32 rev_nat, __be32 *address, __be16 *port, const bool v6)
{
	if (v6) {
		const struct lb6_rev *rev = bpf_map_lookup_elem(&cilia_lb6_rev, &rev_nat);

		if (!rev)
			return false;
		address_copy(address, rev->address, true);
		*port = rev->port;
	} else {
		const struct lb4_rev *rev = bpf_map_lookup_elem(&cilia_lb4_rev, &rev_nat);

		if (!rev)
			return false;
		address[0] = rev->address;
		*port = rev->port;
	}
	return true;
}

/* The frontend that a connection's replies come from; false if there is none at its address any more. Its
 * number finds it at once unless it was made anew. */
static __noinline bool lb_frontend_of(const struct ct_entry *entry, __u8 proto, __be32 *address,
				      __be16 *port, bool v6)
{
	bool other_node = entry->flags & CT_OTHER_NODE;
	bool found = lb_frontend(entry->rev_nat, address, port, v6);

	if (!entry->frontend_port && !other_node)
		return found;
	if (found && *port == entry->frontend_port && address_equal(address, entry->nat_address, v6))
		return true;
	address_copy(address, entry->nat_address, v6);
	if (!entry->frontend_port)
		return found;
	*port = entry->frontend_port;
	return lb_serves(address, *port, proto, other_node, v6);
}

/* A connection that ended is over for the frontend's entry too, or a new one on the same ports would
 * be taken for a part of it. */
static __always_inline void lb_close(const struct ct_entry *entry, const struct tuple *frontend,
				     const bool v6)
{
	struct ct_entry *service = ct_lookup(frontend, CT_SERVICE, v6);

	if (service && service->rev_nat == entry->rev_nat)
		service->reply_tcp_flags |= entry->reply_tcp_flags;
}

/* Give a backend's packet the frontend as its source: entry is that of the connection. 0 or a refusal;
 * a client must never see the backend's own address. */
static __always_inline int lb_reverse(ctx_t *ctx, struct packet *packet, struct ct_entry *entry,
				      const bool v6)
{
	struct tuple client = {};
	__be32 address[4] = {};
	__be16 port = 0;
	int refused;

	if (!lb_frontend_of(entry, packet->tuple.proto, address, &port, v6))
		return REFUSE(DROP_NO_SERVICE);
	ct_seen(ctx, entry, packet, true, false, ct_now_s());
	refused = packet_set_source(ctx, packet, address, port, v6);
	if (!refused && (entry->flags & CT_OTHER_PORT)) {
		address_copy(address, packet->tuple.daddr, true);
		refused = packet_set_destination(ctx, packet, address, entry->nat_port, v6);
	}
	if (!refused && (packet->tcp_flags & (TCP_FIN | TCP_RST))) {
		tuple_exchange(&client, &packet->tuple);
		lb_close(entry, &client, v6);
	}
	return refused;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Connections through a frontend that was made anew. Frontends and backends have other numbers then, and
 * what the client's entry names is gone; addresses and ports are the same. The connection goes on if its
 * backend is behind the frontend again: of all backends there, it is the one to which the client has a flow
 * through this frontend. Slots are gone through in turn, once a connection: its entry has the numbers of
 * today afterwards.
 *
 * The program calls this between two attempts, because the stack of the calls to the choice of a backend is
 * full. */
#include "lb_packet.h"

/* The search. Of two flows of one client port the one that spoke last is its connection. */
struct lb_return {
	struct lb_asked asked;
	const struct packet *packet;
	struct tuple to;	/* the packet's behind the translation to a slot's backend */
	__u32 backend_id;	/* 0: none was found */
	__u32 expires_s;
	bool v6;
};

/* Until when the client has a flow with the tuple in search->to; 0: it has none. */
typedef __u32 lb_return_until(struct lb_return *search, const bool v6);

static __always_inline __u32 lb_until(struct lb_return *search, const bool v6)
{
	const struct ct_entry *service = search->asked.service;
	struct ct_entry *behind;

	if (service->flags & CT_OTHER_PORT)
		search->to.sport = service->nat_port;
	behind = ct_lookup(&search->to, CT_EGRESS, v6);
	if (!behind || !lb_is_of(behind, &search->to, &search->packet->tuple, service->rev_nat))
		return 0;
	/* An earlier version wrote numbers only, which say nothing once the client's entry has those of today. */
	if (!behind->frontend_port) {
		address_copy(behind->nat_address, search->packet->tuple.daddr, true);
		behind->frontend_port = search->packet->tuple.dport;
	}
	return behind->expires_s;
}

static __always_inline void lb_return_look(struct lb_return *search, __u32 turn, lb_return_until until,
					   const bool outside, const bool v6)
{
	const struct lb_service *slot;
	struct lb_target target;
	__u32 expires_s;

	lb_key_slot(&search->asked.key, turn + 1, v6);
	slot = lb_entry(&search->asked.key, v6);
	if (!slot || !lb_target(&target, slot->backend_id, v6))
		return;
	lb_translated(&search->to, &search->packet->tuple, &target, outside, v6);
	expires_s = until(search, v6);
	if (!expires_s || (search->backend_id && (__s32)(expires_s - search->expires_s) <= 0))
		return;
	search->expires_s = expires_s;
	search->backend_id = target.id;
}

/* Turn of bpf_loop: look at one slot. until: which flows there are. */
static __always_inline long lb_return_slot(__u32 turn, struct lb_return *search, lb_return_until until,
					   const bool outside)
{
	if (search->v6)
		lb_return_look(search, turn, until, outside, true);
	else
		lb_return_look(search, turn, until, outside, false);
	return 0;
}

/* Look for the backend of a packet's connection by address, and give the client's entry the numbers of today.
 * What is not found is a backend that is gone. slot: lb_return_slot of the program. */
static __always_inline void lb_return(struct packet *packet, long (*slot)(__u32, struct lb_return *),
				      const bool outside, const bool v6)
{
	struct lb_return search = { .packet = packet, .v6 = v6 };
	struct lb_asked *asked = &search.asked;

	packet->flags |= PACKET_SOUGHT;
	lb_find_frontend(asked, &packet->tuple, outside, v6);
	asked->service = ct_lookup(&packet->tuple, CT_SERVICE, v6);
	/* Not left to a loop of no turns: older verifiers take it that there is one. */
	if (!asked->svc || !asked->service)
		return;
	bpf_loop(asked->svc->count + asked->svc->qcount, slot, &search, 0);
	if (!search.backend_id)
		return;
	asked->service->backend_id = search.backend_id;
	asked->service->rev_nat = asked->svc->rev_nat;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What connection tracking tells traces of a packet: the state of its flow, and whether this packet is one
 * that a trace with aggregation has. Who looks a flow up notes it, and trace.h reads it where the packet
 * leaves the program. Without traces the verifier removes all of it.
 */
#include "event_types.h"
#include "tuple.h"

/* Set before load. Whether packets that pass are reported at all. */
const volatile bool trace_notifications = false;
/* TCP flags that are reported when a side sends them for the first time. */
const volatile __u8 monitor_flags = TCP_FIN | TCP_SYN | TCP_RST;
/* A flow in use is reported again after so many seconds; 0: it is not. */
const volatile __u32 monitor_interval_s = 5;

/* In packet.flow_state: it goes to who opened the flow. */
#define FLOW_TO_OPENER 0x80

/* Notes are no part of what a packet says, so they are made on constant ones, too. A later state counts; what
 * changed once stays so. Numbers, not truth values: each of these would be a branch, and the verifier would
 * look at all that follows twice. */
static __always_inline void flow_note(const struct packet *packet, __u8 state, __u32 changes)
{
	struct packet *noted = (struct packet *)packet;

	if (!trace_notifications)
		return;
	noted->flow_state = state;
	noted->flow_changes |= changes;
}

/* The packet opens a flow that has no entry yet. */
static __always_inline void flow_note_new(const struct packet *packet)
{
	flow_note(packet, FLOW_NEW, 1);
}

/* The packet is of a flow with an entry. changes: not 0 if it is the first of its kind. */
static __always_inline void flow_note_known(const struct packet *packet, bool reply, __u32 changes)
{
	flow_note(packet, reply ? FLOW_REPLY | FLOW_TO_OPENER : FLOW_ESTABLISHED, changes);
}

/* The packet is an ICMP error about a flow. */
static __always_inline void flow_note_related(const struct packet *packet, bool reply)
{
	flow_note(packet, reply ? FLOW_RELATED | FLOW_TO_OPENER : FLOW_RELATED, 1);
}

/* The packet is about to get another source. */
static __always_inline void flow_note_source(struct packet *packet, const bool v6)
{
	if (trace_notifications && !(packet->flags & PACKET_ICMP_ERROR))
		address_copy(packet->original.word, packet->tuple.saddr, v6);
}

/* How many intervals ended since the flow was last seen; both in seconds. */
static __always_inline __u32 flow_note_due(__u32 now_s, __u32 seen_s)
{
	if (!trace_notifications || !monitor_interval_s)
		return 0;
	return now_s / monitor_interval_s - seen_s / monitor_interval_s;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Traces: reports of packets that pass, at the places where they enter and leave our programs.
 *
 *	none	every packet, at every point
 *	low	where packets leave a program (to-…), and not where they enter it (from-…)
 *	medium	of these, the packets that connection tracking noted (flow_note.h): those that open or close a
 *		flow, its first reply, and one in an interval
 *
 * A packet without a flow is reported up to low alone. Traces are called by the program itself: in the
 * functions below it the stack of a chain of calls is nearly full.
 */
#include "event.h"
#include "flow_note.h"

/* Set before load. */
const volatile __u32 monitor_aggregation = MONITOR_MEDIUM;

/* Report a packet at a point; what: point, direction, and packet.flow_state, a byte each. original: its source
 * before it was translated, 0 or NULL if it was not. */
__noinline int trace_report(ctx_t *ctx, __u32 what, __u32 ifindex, const struct address *original)
{
	struct event event = {
		.kind = EVENT_TRACE,
		.observation_point = what,
		.direction = what >> 8,
		.flow_state = (what >> 16) & ~FLOW_TO_OPENER,
		.flags = (what >> 16) & FLOW_TO_OPENER ? EVENT_FLAG_REPLY : 0,
		.ifindex = ifindex,
	};

	if (event_is_wanted(EVENT_TRACE))
		event_packet(ctx, &event, original && original->word[0] ? original : NULL);
	return 0;
}

static __always_inline __u32 trace_what(__u8 point, __u8 direction, __u8 state)
{
	return point | (__u32)direction << 8 | (__u32)state << 16;
}

/* A packet enters a program, nothing being known of it. */
static __always_inline void trace_from(ctx_t *ctx, __u8 point, __u8 direction)
{
	if (trace_notifications && monitor_aggregation < MONITOR_LOWEST)
		trace_report(ctx, trace_what(point, direction, FLOW_UNKNOWN), ctx_ifindex(ctx), NULL);
}

/* A packet leaves a program by a device, 0: the stack decides. direction: perhaps with AT_SENDER. */
static __always_inline void trace_to(ctx_t *ctx, const struct packet *packet, __u8 point, __u8 direction,
				     __u32 ifindex)
{
	if (!trace_notifications ||
	    (monitor_aggregation >= MONITOR_MEDIUM && !packet->flow_changes))
		return;
	trace_report(ctx, trace_what(point, direction, packet->flow_state), ifindex,
		     &packet->original);
}

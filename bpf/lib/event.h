/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Reporting: records into one ring buffer for the node, and exact counts of what had no room.
 *
 * A record is counted as lost on the CPU that could not write it, by kind, so that
 * written + lost = reported at any rate. The addition is atomic because a program on the same CPU
 * may interrupt this one.
 */
#include "ctx.h"
#include "drop.h"
#include "metrics.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} cilia_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct event_lost);
	__uint(max_entries, EVENT_KINDS);
} cilia_lost SEC(".maps");

/* A record as it is reserved: the ring buffer wants a size that the verifier knows. */
struct event_record {
	struct event_header header;
	__u8 data[EVENT_CAPTURE_BYTES];
};

static __always_inline void event_lost(__u32 kind)
{
	struct event_lost *lost = bpf_map_lookup_elem(&cilia_lost, &kind);

	if (lost)
		__sync_fetch_and_add(&lost->count, 1);
}

/* What a caller knows; the rest of the header is filled in here. */
struct event {
	__u8 kind;
	__u8 direction;
	__u8 file;
	__s16 reason;
	__u16 line;
	__u32 source_identity;
	__u32 destination_identity;
	__u32 rule_cookie;
};

/* Report about a packet, with its first bytes. */
static __always_inline void event_packet(ctx_t *ctx, const struct event *event)
{
	struct event_record *record = bpf_ringbuf_reserve(&cilia_events, sizeof(*record), 0);
	/* Index of the last byte, not the length: verifiers before Linux 6.2 do not learn from a
	 * comparison with 0 that a length is not 0. The index of an empty packet wraps to a large one. */
	__u32 last = ctx_length(ctx) - 1;
	__u32 captured;

	if (!record) {
		event_lost(event->kind);
		return;
	}
	if (last >= EVENT_CAPTURE_BYTES)
		last = EVENT_CAPTURE_BYTES - 1;
	barrier_var(last);
	captured = last + 1;
	__builtin_memset(&record->header, 0, sizeof(record->header));
	record->header.version = EVENT_VERSION;
	record->header.kind = event->kind;
	record->header.header_size = sizeof(record->header);
	record->header.cpu = bpf_get_smp_processor_id();
	record->header.time_ns = bpf_ktime_get_ns();
	record->header.socket_cookie = ctx_socket_cookie(ctx);
	record->header.ifindex = ctx_ifindex(ctx);
	record->header.source_identity = event->source_identity;
	record->header.destination_identity = event->destination_identity;
	record->header.rule_cookie = event->rule_cookie;
	record->header.reason = event->reason;
	record->header.line = event->line;
	record->header.file = event->file;
	record->header.direction = event->direction;
	record->header.layer = LAYER_ETHERNET;
	record->header.original_length = ctx_length(ctx);
	if (ctx_load_bytes(ctx, 0, record->data, captured))
		captured = 0;
	record->header.captured_length = captured;
	bpf_ringbuf_submit(record, 0);
}

/* Report and count a refused packet; the value is what the caller returns. */
static __always_inline int drop_at(ctx_t *ctx, __s16 reason, __u8 direction, __u8 file,
				   __u16 line)
{
	struct event event = {
		.kind = EVENT_DROP,
		.direction = direction,
		.file = file,
		.reason = reason,
		.line = line,
	};
	struct metrics_key key = {
		.reason = reason,
		.line = line,
		.file = file,
		.direction = direction,
	};

	metrics_count(&key, ctx_length(ctx));
	event_packet(ctx, &event);
	return reason;
}

#define drop(ctx, reason, direction) \
	drop_at(ctx, reason, direction, file_number(__FILE_NAME__), __LINE__)

/* Report and count what a function refused (drop.h); the verdict is what the program returns. */
static __always_inline int drop_refused(ctx_t *ctx, __s32 refusal, __u8 direction)
{
	drop_at(ctx, refusal_reason(refusal), direction, refusal_file(refusal), refusal_line(refusal));
	return CTX_DROP;
}

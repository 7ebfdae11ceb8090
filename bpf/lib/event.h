/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Reporting: records into one ring buffer for the node, and exact counts of what had no room.
 *
 * Nothing is written while nobody listens (cilia_listeners). A record is counted as lost on the CPU that
 * could not write it, by kind, so that written + lost = reported at any rate. The addition is atomic because
 * a program on the same CPU may interrupt this one.
 *
 * Who reports calls a function of its own with numbers alone: it needs nothing of the caller's stack, and
 * the verifier looks at it once.
 */
#include "ctx.h"
#include "drop.h"
#include "endpoint_place.h"
#include "ipcache.h"
#include "metrics.h"
#include "tuple.h"
#include <linux/ip.h>
#include <linux/ipv6.h>

/* Set before load: whether drops are reported (they are counted in any case), and how many bytes of a packet
 * a record has. */
const volatile bool drop_notifications = true;
const volatile __u32 event_payload_bytes = EVENT_CAPTURE_BYTES;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} cilia_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct event_listeners);
	__uint(max_entries, 1);
} cilia_listeners SEC(".maps");

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

static __always_inline bool event_is_wanted(__u32 kind)
{
	const struct event_listeners *listeners;
	__u32 zero = 0;

	listeners = bpf_map_lookup_elem(&cilia_listeners, &zero);
	return listeners && (listeners->kinds & (1 << kind));
}

static __always_inline void event_lost(__u32 kind)
{
	struct event_lost *lost = bpf_map_lookup_elem(&cilia_lost, &kind);

	if (lost)
		__sync_fetch_and_add(&lost->count, 1);
}

/* What a caller knows; the rest of the header is filled in here. */
struct event {
	__u8 kind;
	__u8 direction;		/* DIRECTION_*, perhaps AT_SENDER */
	__u8 file;
	__u8 observation_point;
	__u8 flow_state;
	__u8 flags;
	__s16 reason;
	__u16 line;
	__u32 ifindex;
};

/* One end of a packet: the address on the wire, and who is known to be behind it. */
struct event_end {
	__be32 address[4];
	__u32 identity;
	__u16 endpoint;
	__u16 pad;
};

/* Addresses of a frame; false if it has none. */
static __always_inline bool event_addresses(ctx_t *ctx, struct event_end *source,
					    struct event_end *destination, bool *v6)
{
	__be32 both[2];

	switch (ctx_protocol(ctx)) {
	case bpf_htons(ETH_P_IP):
		if (ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), both,
				   sizeof(both)))
			return false;
		source->address[0] = both[0];
		destination->address[0] = both[1];
		return true;
	case bpf_htons(ETH_P_IPV6):
		*v6 = true;
		return !ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr),
				       source->address, sizeof(source->address)) &&
		       !ctx_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, daddr),
				       destination->address, sizeof(destination->address));
	}
	return false;
}

/* Who is behind the address: a workload of this node, or whom the ipcache has. */
static __noinline void event_identify(struct event_end *end, bool v6)
{
	const struct endpoint_place *place = endpoint_at(end->address, v6);

	if (!place) {
		end->identity = ipcache_identity(end->address, v6);
		return;
	}
	end->identity = place->identity;
	end->endpoint = place->id;
}

/* Fill identities and endpoints of both ends. At the sender's device the device says who it is, whatever the
 * packet has for a source. original: the source before it was translated, or NULL. */
static __always_inline void event_ends(ctx_t *ctx, struct event_header *header, __u8 direction,
				       const struct address *original)
{
	struct event_end source = {}, destination = {};
	const struct endpoint *sender = NULL;
	bool v6 = false;

	if (!pod_network)
		return;
	if (event_addresses(ctx, &source, &destination, &v6)) {
		if (original)
			address_copy(source.address, original->word, true);
		event_identify(&source, v6);
		event_identify(&destination, v6);
	}
	if (direction == DIRECTION_EGRESS || (direction & AT_SENDER))
		sender = endpoint_of(ctx_ifindex(ctx));
	header->source_identity = sender ? sender->identity : source.identity;
	header->source_endpoint = sender ? sender->id : source.endpoint;
	header->destination_identity = destination.identity;
	header->destination_endpoint = destination.endpoint;
}

/* Bytes of the packet that a record gets. */
static __always_inline __u32 event_capture(ctx_t *ctx, struct event_record *record)
{
	/* Index of the last byte, not the length: verifiers before Linux 6.2 do not learn from a
	 * comparison with 0 that a length is not 0. The index of an empty packet wraps to a large one. */
	__u32 last = ctx_length(ctx) - 1;

	if (last >= event_payload_bytes)
		last = event_payload_bytes - 1;
	if (last >= EVENT_CAPTURE_BYTES)
		last = EVENT_CAPTURE_BYTES - 1;
	barrier_var(last);
	return ctx_load_bytes(ctx, 0, record->data, last + 1) ? 0 : last + 1;
}

/* Report about a packet, with its first bytes. original: as in event_ends. */
static __always_inline void event_packet(ctx_t *ctx, const struct event *event,
					 const struct address *original)
{
	struct event_record *record = bpf_ringbuf_reserve(&cilia_events, sizeof(*record), 0);
	struct event_header *header;

	if (!record) {
		event_lost(event->kind);
		return;
	}
	header = &record->header;
	__builtin_memset(header, 0, sizeof(*header));
	header->version = EVENT_VERSION;
	header->kind = event->kind;
	header->header_size = sizeof(*header);
	header->cpu = bpf_get_smp_processor_id();
	header->time_ns = bpf_ktime_get_ns();
	header->socket_cookie = ctx_socket_cookie(ctx);
	header->ifindex = event->ifindex;
	header->reason = event->reason;
	header->line = event->line;
	header->file = event->file;
	header->direction = event->direction & ~AT_SENDER;
	header->layer = LAYER_ETHERNET;
	header->flags = event->flags;
	header->original_length = ctx_length(ctx);
	header->flow_hash = ctx_flow_hash(ctx);
	header->mark = ctx_mark(ctx);
	header->observation_point = event->observation_point;
	header->flow_state = event->flow_state;
	if (original) {
		address_copy(header->original_source, original->word, true);
		if (ctx_protocol(ctx) == bpf_htons(ETH_P_IPV6))
			header->flags |= EVENT_FLAG_V6;
	}
	event_ends(ctx, header, event->direction, original);
	header->captured_length = event_capture(ctx, record);
	bpf_ringbuf_submit(record, 0);
}

/* Count a refusal, and report it to who listens. direction: DIRECTION_*, perhaps AT_SENDER. */
__noinline int drop_report(ctx_t *ctx, __s32 refusal, __u32 direction)
{
	struct metrics_key key = {
		.reason = refusal_reason(refusal),
		.line = refusal_line(refusal),
		.file = refusal_file(refusal),
		.direction = direction & ~AT_SENDER,
	};
	struct event event = {
		.kind = EVENT_DROP,
		.direction = direction,
		.file = key.file,
		.reason = key.reason,
		.line = key.line,
		.ifindex = ctx_ifindex(ctx),
	};

	metrics_count(&key, ctx_length(ctx));
	if (drop_notifications && event_is_wanted(EVENT_DROP))
		event_packet(ctx, &event, NULL);
	return 0;
}

/* Report and count a refused packet where it is refused. */
#define drop(ctx, reason, direction) drop_report(ctx, REFUSE(reason), direction)

/* Report and count what a function refused (drop.h); the verdict is what the program returns. */
static __always_inline int drop_refused(ctx_t *ctx, __s32 refusal, __u8 direction)
{
	drop_report(ctx, refusal, direction);
	return CTX_DROP;
}

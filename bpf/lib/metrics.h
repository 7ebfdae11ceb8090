/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Counters of packets and bytes. A CPU adds to its own values, so nothing is contended; additions are
 * atomic all the same, because a program on the same CPU may interrupt this one. */
#include "common.h"
#include "metrics_types.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, struct metrics_key);
	__type(value, struct metrics_value);
	__uint(max_entries, 1024);
} cilia_metrics SEC(".maps");

static __always_inline void metrics_count(const struct metrics_key *key, __u64 bytes)
{
	struct metrics_value *value = bpf_map_lookup_elem(&cilia_metrics, key);
	struct metrics_value first = { .packets = 1, .bytes = bytes };

	/* On one CPU a program that interrupts another between look-up and creation has made the
	 * entry: then it is there on the second look. */
	if (!value && bpf_map_update_elem(&cilia_metrics, key, &first, BPF_NOEXIST)) {
		value = bpf_map_lookup_elem(&cilia_metrics, key);
		if (!value)
			return;
	}
	if (value) {
		__sync_fetch_and_add(&value->packets, 1);
		__sync_fetch_and_add(&value->bytes, bytes);
	}
}

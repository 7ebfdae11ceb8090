/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The switch between us and another proxy of Services. Asked where a connection would begin, never
 * for one that is known. A map, not a constant: it is turned while programs are in force, and stays as
 * it is when the agent is gone. */
#include "common.h"
#include "switch_types.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct switch_state);
	__uint(max_entries, 1);
} cilia_switch SEC(".maps");

static __always_inline __u32 switch_state(void)
{
	const struct switch_state *found;
	__u32 zero = 0;

	found = bpf_map_lookup_elem(&cilia_switch, &zero);
	return found ? found->state : SWITCH_SERVE;
}

static __always_inline bool switch_hands_back(void)
{
	return switch_state() == SWITCH_HAND_BACK;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Who has connections that begin now, compiled into BPF; bpf/maps/switch.py writes it. What holds for
 * lb_types.h holds here.
 *
 * cilia_switch: one value at key 0. Connections that are known go on in every state. */

#define SWITCH_SERVE 0		/* all are ours */
#define SWITCH_HAND_BACK 1	/* new ones pass untranslated, to whoever is next */
#define SWITCH_TAKE_OVER 2	/* new ones are ours; TCP that began without us is left to others */

struct switch_state {
	__u32 state;		/* SWITCH_* */
};

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* cilia_metrics: packets and bytes by reason, direction and place in the source, a CPU; see lb_types.h
 * for what this file may contain. Reason 0 counts what was forwarded, a negative one is DROP_*.
 */
struct metrics_key {
	__s16 reason;
	__u16 line;
	__u8 file;		/* FILE_* of event_types.h */
	__u8 direction;		/* DIRECTION_* of event_types.h */
	__u16 pad;
};

struct metrics_value {
	__u64 packets;
	__u64 bytes;
};

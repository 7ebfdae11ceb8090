/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Keys of the maps that spare a pod its own redirection, compiled into BPF; bpf/maps/redirect_skips.py writes
 * them. What holds for lb_types.h holds here.
 *
 * cilia_skip_lb4, cilia_skip_lb6: (network namespace, frontend) whose sockets are not translated when
 * they dial this frontend. No protocol: a pod behind a redirected port reaches what was there before
 * by TCP and UDP alike.
 */
struct skip_lb4_key {
	__u64 netns_cookie;	/* bpf_get_netns_cookie(ctx) */
	__be32 address;		/* as dialled */
	__be16 port;
	__u16 pad;
};

struct skip_lb6_key {
	__u64 netns_cookie;
	__be32 address[4];
	__be16 port;
	__u16 pad;
	__u32 pad2;
};

/* cilia_skip_pod4, cilia_skip_pod6: (address of a pod, frontend) whose packets are not translated, for
 * pods whose sockets are left alone. */
struct skip_pod4_key {
	__be32 pod;
	__be32 address;		/* as dialled */
	__be16 port;
	__u16 pad;
};

struct skip_pod6_key {
	__be32 pod[4];
	__be32 address[4];
	__be16 port;
	__u16 pad;
};

/* The key says all. */
struct skip_lb_value {
	__u32 pad;
};

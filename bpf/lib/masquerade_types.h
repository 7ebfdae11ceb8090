/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* cilia_ipmasq4, cilia_ipmasq6: where packets of this node's workloads go with their own source, beside the
 * nodes of the cluster; longest match. See lb_types.h for what this file may contain. */
struct masquerade4_key {
	__u32 prefix_bits;
	__be32 address;
};

struct masquerade6_key {
	__u32 prefix_bits;
	__be32 address[4];
};

struct masquerade_exclusion {
	__u32 pad;
};

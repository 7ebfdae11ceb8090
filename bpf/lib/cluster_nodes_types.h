/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* cilia_nodes4, cilia_nodes6: the addresses that the Node objects of the cluster have; see lb_types.h for
 * what this file may contain. */

/* cluster_node.flags */
#define CLUSTER_NODE_SELF 0x0001	/* of the node that the program runs on */

struct cluster_node4_key {
	__be32 address;
};

struct cluster_node6_key {
	__be32 address[4];
};

struct cluster_node {
	__u32 flags;		/* CLUSTER_NODE_* */
};

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The nodes of the cluster by their addresses: whose node port a client asks, and who may send what only
 * nodes send. All nodes read the same Node objects, so each knows which of its own addresses the others
 * know it by. */
#include "common.h"
#include "cluster_nodes_types.h"

#define CLUSTER_NODES(name, key_type)			\
	struct {					\
		__uint(type, BPF_MAP_TYPE_HASH);	\
		__type(key, key_type);			\
		__type(value, struct cluster_node);	\
		__uint(max_entries, 16384);		\
		__uint(map_flags, BPF_F_NO_PREALLOC);	\
	} name SEC(".maps")

CLUSTER_NODES(cilia_nodes4, struct cluster_node4_key);
CLUSTER_NODES(cilia_nodes6, struct cluster_node6_key);

/* The node that has an address, this one too; or NULL. An IPv4 address is the first word. The key is copied,
 * because Linux 6.1 takes none from an argument of a global function; a function of its own saves the stack
 * of its callers. */
static __noinline __attribute__((unused)) const struct cluster_node *
cluster_node(const __be32 *address, bool v6)
{
	struct cluster_node6_key key = {};

	key.address[0] = address[0];
	if (!v6)
		return bpf_map_lookup_elem(&cilia_nodes4, &key);
	key.address[1] = address[1];
	key.address[2] = address[2];
	key.address[3] = address[3];
	return bpf_map_lookup_elem(&cilia_nodes6, &key);
}

static __always_inline bool cluster_node_is_other(const __be32 *address, const bool v6)
{
	const struct cluster_node *node = cluster_node(address, v6);

	return node && !(node->flags & CLUSTER_NODE_SELF);
}

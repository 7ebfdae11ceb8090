/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Workloads of this node whose network is ours, by device and by address. */
#include "common.h"
#include "endpoint_types.h"

/* Set before load: this node's workloads have their network from us. */
const volatile bool pod_network = false;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint);
	__uint(max_entries, 65535);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} cilia_endpoints SEC(".maps");

/* The workload behind a device of the node, or NULL. */
static __always_inline const struct endpoint *endpoint_of(__u32 ifindex)
{
	struct endpoint_key key = { .ifindex = ifindex };

	return bpf_map_lookup_elem(&cilia_endpoints, &key);
}

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct endpoint_address);
	__type(value, struct endpoint_place);
	__uint(max_entries, 131070);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} cilia_lxc SEC(".maps");

/* The workload that has an address, or NULL. An IPv4 address is the first word. */
static __noinline __attribute__((unused)) const struct endpoint_place *
endpoint_at(const __be32 *address, bool v6)
{
	struct endpoint_address key = { .v6 = v6 };

	key.address[0] = address[0];
	if (v6) {
		key.address[1] = address[1];
		key.address[2] = address[2];
		key.address[3] = address[3];
	}
	return bpf_map_lookup_elem(&cilia_lxc, &key);
}

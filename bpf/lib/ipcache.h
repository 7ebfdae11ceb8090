/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Which identity is behind an address. The trie has no memory of its own while it is empty. */
#include "common.h"
#include "ipcache_types.h"

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct ipcache_key);
	__type(value, struct ipcache_value);
	__uint(max_entries, 512000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} cilia_ipcache SEC(".maps");

/* The identity behind an address, 0 if nothing covers it. An IPv4 address is the first word. */
static __noinline __attribute__((unused)) __u32 ipcache_identity(const __be32 *address, bool v6)
{
	struct ipcache_key key = {
		.prefix_bits = IPCACHE_STATIC_BITS + (v6 ? 128 : 32),
		.family = v6 ? IPCACHE_FAMILY_IPV6 : IPCACHE_FAMILY_IPV4,
	};
	const struct ipcache_value *found;

	key.address[0] = address[0];
	if (v6) {
		key.address[1] = address[1];
		key.address[2] = address[2];
		key.address[3] = address[3];
	}
	found = bpf_map_lookup_elem(&cilia_ipcache, &key);
	return found ? found->identity : 0;
}

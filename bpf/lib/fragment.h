/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Ports of fragments: the first one of a datagram has them and leaves them here for the others.
 *
 * Addresses are those on the wire where the program runs, so each hook finds what it saw itself. */
#include "tuple.h"

struct fragment4_key {
	__be32 daddr;
	__be32 saddr;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct fragment6_key {
	__be32 daddr[4];
	__be32 saddr[4];
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct fragment_ports {
	__be16 dport;
	__be16 sport;
};

#define FRAGMENT_MAP(name, key_type)			\
	struct {					\
		__uint(type, BPF_MAP_TYPE_LRU_HASH);	\
		__type(key, key_type);			\
		__type(value, struct fragment_ports);	\
		__uint(max_entries, 8192);		\
	} name SEC(".maps")

FRAGMENT_MAP(cilia_frag4, struct fragment4_key);
FRAGMENT_MAP(cilia_frag6, struct fragment6_key);

static __always_inline void fragment_track(struct packet *packet, void *map, const void *key)
{
	struct fragment_ports first = { packet->tuple.dport, packet->tuple.sport };
	const struct fragment_ports *ports;

	if (!(packet->flags & PACKET_LATER)) {
		bpf_map_update_elem(map, key, &first, BPF_ANY);
		return;
	}
	ports = bpf_map_lookup_elem(map, key);
	if (!ports) {
		packet->flags |= PACKET_NO_PORTS;
		return;
	}
	packet->tuple.dport = ports->dport;
	packet->tuple.sport = ports->sport;
}

/* Remember the ports of a first fragment, or give a later one its ports. */
static __always_inline void fragment_ports(struct packet *packet, const bool v6)
{
	const struct tuple *tuple = &packet->tuple;

	if (v6) {
		struct fragment6_key key = { .id = packet->fragment_id, .proto = tuple->proto };

		address_copy(key.daddr, tuple->daddr, true);
		address_copy(key.saddr, tuple->saddr, true);
		fragment_track(packet, &cilia_frag6, &key);
	} else {
		struct fragment4_key key = { .id = packet->fragment_id, .proto = tuple->proto };

		key.daddr = tuple->daddr[0];
		key.saddr = tuple->saddr[0];
		fragment_track(packet, &cilia_frag4, &key);
	}
}

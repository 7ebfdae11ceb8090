/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The two ends of a socket's life: an address that frontends of the node have is not given to a
 * listener, which would hear nothing, and a closed socket's entry for the way back is removed. */
#include "common.h"
#include "lb.h"
#include "sock.h"

/* Frontends whose address may be the node's own. A cluster address is not: a cache of names that
 * binds one of them on each node is meant to hear what is sent there. */
static __always_inline bool sock_owns_port(const struct lb_service *svc, bool here)
{
	if (!svc || ((svc->flags & LB_SVC_LOOPBACK) && !here))
		return false;
	switch (svc->type) {
	case LB_TYPE_NODE_PORT:
	case LB_TYPE_EXTERNAL_IPS:
	case LB_TYPE_LOAD_BALANCER:
	case LB_TYPE_HOST_PORT:
		return true;
	default:
		return false;
	}
}

/* 0 is every address of the node, and loopback leads where that leads. */
static __always_inline bool sock4_is_taken(__u8 proto, __be32 address, __be16 port)
{
	bool here = !address || ipv4_is_loopback(address);
	struct lb4_key key = { .address = here ? 0 : address, .dport = port, .proto = proto };

	return sock_owns_port(lb4_service(&key), here);
}

static __always_inline bool sock6_is_taken(__u8 proto, const __be32 *address, __be16 port)
{
	bool here = ipv6_is_any(address) || ipv6_is_loopback(address);
	struct lb6_key key = { .dport = port, .proto = proto };

	if (!here)
		__builtin_memcpy(key.address, address, sizeof(key.address));
	return sock_owns_port(lb6_service(&key), here);
}

/* A socket bound to :: hears IPv4 too unless it was told not to, which cannot be seen here. */
static __always_inline bool sock6_is_taken_in_both(__u8 proto, const __be32 *address, __be16 port)
{
	if (ipv6_is_mapped(address))
		return sock4_is_taken(proto, address[3], port);
	return sock6_is_taken(proto, address, port) ||
	       (ipv6_is_any(address) && sock4_is_taken(proto, 0, port));
}

/* Of the entries of a socket, the one of the peer that it is connected to. */
static __always_inline void sock4_forget(__u64 cookie, __be32 address, __be16 port)
{
	struct sock4_key key = { .cookie = cookie, .address = address, .port = port };

	bpf_map_delete_elem(&cilia_lb4_sk, &key);
}

static __always_inline void sock6_forget(__u64 cookie, const __be32 *address, __be16 port)
{
	struct sock6_key key = { .cookie = cookie, .port = port };

	__builtin_memcpy(key.address, address, sizeof(key.address));
	bpf_map_delete_elem(&cilia_lb6_sk, &key);
}

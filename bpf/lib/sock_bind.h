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
static __always_inline bool sock_is_taken(__u8 proto, const __be32 *address, __be16 port, const bool v6)
{
	bool here = address_is_any(address, v6) || address_is_loopback(address, v6);
	union lb_key key;

	lb_key_of(&key, address, port, proto, v6);
	if (here)
		lb_key_any_address(&key, v6);
	return sock_owns_port(lb_service(&key, v6), here);
}

/* A socket bound to :: hears IPv4 too unless it was told not to, which cannot be seen here. */
static __always_inline bool sock_is_taken_in_both(__u8 proto, const __be32 *address, __be16 port)
{
	if (ipv6_is_mapped(address))
		return sock_is_taken(proto, &address[3], port, false);
	return sock_is_taken(proto, address, port, true) ||
	       (address_is_any(address, true) && sock_is_taken(proto, address, port, false));
}

/* Of the entries of a socket, the one of the peer that it is connected to. */
static __always_inline void sock_forget(__u64 cookie, const __be32 *address, __be16 port, const bool v6)
{
	union sock_key key;

	sock_key_of(&key, cookie, address, port, v6);
	if (v6)
		bpf_map_delete_elem(&cilia_lb6_sk, &key.v6);
	else
		bpf_map_delete_elem(&cilia_lb4_sk, &key.v4);
}

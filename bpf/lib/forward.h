/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Where a packet goes by the node's routes, and on its way there without the stack.
 *
 * The route is looked up before a byte is changed: what cannot be forwarded here (XDP without a known
 * neighbour, a backend of this node) goes on untouched or to the stack. */
#include "ctx.h"
#include "drop.h"
#include "mark_types.h"
#include "netdev_types.h"
#include "tuple.h"
#include <linux/if_ether.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct netdev_key);
	__type(value, struct netdev);
	__uint(max_entries, 256);
} cilia_netdev SEC(".maps");

/* Results of route_find; refusals are negative. */
#define ROUTE_STACK 0	/* to this node, or the stack knows better */
#define ROUTE_OUT 1	/* out of a device to a known neighbour */
#define ROUTE_NO_NEIGHBOUR 2	/* so, to one whose link address is not known yet */

struct route {
	struct bpf_fib_lookup fib;
	__be32 address[4];	/* of the node on the device */
	bool outside;		/* false: the device leads to workloads of this node */
};

/* Length of the IP packet for a comparison with an MTU; 0 if it has yet to be cut into segments. */
static __always_inline __u16 route_length(ctx_t *ctx, const struct packet *packet)
{
#ifndef CILIA_XDP
	if (ctx->gso_size)
		return 0;
#endif
	return ctx_length(ctx) - packet->l3;
}

static __always_inline const struct netdev *netdev_find(__u32 ifindex)
{
	return bpf_map_lookup_elem(&cilia_netdev, &ifindex);
}

/* Ask the kernel for the route of a packet of this length, 0 = any: BPF_FIB_LKUP_RET_*. */
static __always_inline long route_ask(ctx_t *ctx, struct bpf_fib_lookup *fib, const __be32 *source,
				      const __be32 *destination, __u16 length, const bool v6)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = v6 ? CILIA_AF_INET6 : CILIA_AF_INET;
	fib->ifindex = ctx_ifindex(ctx);
	fib->tot_len = length;
	if (v6) {
		address_copy(fib->ipv6_src, source, true);
		address_copy(fib->ipv6_dst, destination, true);
	} else {
		fib->ipv4_src = source[0];
		fib->ipv4_dst = destination[0];
	}
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
}

/* Way of a packet of this length from source to destination. Too long a one is refused, which leaves
 * the MTU in fib.mtu_result, but for workloads of this node: there the stack cuts it, or tells. */
static __always_inline int route_find(ctx_t *ctx, struct route *route, const __be32 *source,
				      const __be32 *destination, __u16 length, const bool v6)
{
	struct bpf_fib_lookup *fib = &route->fib;
	const struct netdev *netdev;
	__u16 mtu = 0;
	long rc;

	route->outside = false;
	__builtin_memset(route->address, 0, sizeof(route->address));
	rc = route_ask(ctx, fib, source, destination, length, v6);
	/* The kernel does not tell the device of a route that is too narrow. */
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		mtu = fib->mtu_result;
		rc = route_ask(ctx, fib, source, destination, 0, v6);
	}
	switch (rc) {
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return REFUSE(DROP_NO_ROUTE);
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		break;
	default:
		return ROUTE_STACK;
	}
	netdev = netdev_find(fib->ifindex);
	route->outside = netdev;
	if (netdev && v6)
		address_copy(route->address, netdev->address6, true);
	else if (netdev)
		route->address[0] = netdev->address4;
	if (mtu || rc == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		if (mtu)
			fib->mtu_result = mtu;
		return netdev ? REFUSE(DROP_FRAG_NEEDED) : ROUTE_STACK;
	}
	return rc == BPF_FIB_LKUP_RET_SUCCESS ? ROUTE_OUT : ROUTE_NO_NEIGHBOUR;
}

#ifdef CILIA_XDP
static __always_inline int forward_neighbour(ctx_t *ctx, const struct bpf_fib_lookup *fib)
{
	return CTX_DROP;	/* never: such packets are left to tc */
}
#else
/* The kernel finds the link address, and sends when it has it. */
static __always_inline int forward_neighbour(ctx_t *ctx, const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh next = { .nh_family = fib->family };

	if (fib->family == CILIA_AF_INET6)
		address_copy(next.ipv6_nh, fib->ipv6_dst, true);
	else
		next.ipv4_nh = fib->ipv4_dst;
	return bpf_redirect_neigh(fib->ifindex, &next, sizeof(next), 0);
}
#endif

/* Send a translated packet on the way that route_find found; the value is the program's. */
static __always_inline int forward_out(ctx_t *ctx, const struct route *route, int found)
{
	__u8 macs[2 * ETH_ALEN];	/* destination, source: where a frame begins */

#ifndef CILIA_XDP
	ctx->mark = (ctx->mark & ~MARK_MASK) | MARK_TRANSLATED;
#endif
	if (found == ROUTE_NO_NEIGHBOUR)
		return forward_neighbour(ctx, &route->fib);
	__builtin_memcpy(macs, route->fib.dmac, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, route->fib.smac, ETH_ALEN);
	if (ctx_store_bytes(ctx, 0, macs, sizeof(macs)))
		return CTX_DROP;
	return ctx_redirect(ctx, route->fib.ifindex);
}

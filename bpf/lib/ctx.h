/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The packet of a hook, the same for tc/TCX (struct __sk_buff) and XDP (struct xdp_md, with CILIA_XDP).
 *
 * Bytes are read and written through helpers, not through data pointers: they reach what is not in
 * the linear part, make a shared packet writable, and leave the verifier nothing to prove about
 * offsets that depend on options.
 */
#include "common.h"
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#ifdef CILIA_XDP
typedef struct xdp_md ctx_t;

#define CTX_OK XDP_PASS
#define CTX_DROP XDP_DROP
#define CTX_REDIRECT XDP_REDIRECT

#define ctx_load_bytes(ctx, at, to, size) bpf_xdp_load_bytes(ctx, at, to, size)
#define ctx_store_bytes(ctx, at, from, size) bpf_xdp_store_bytes(ctx, at, (void *)(from), size)
#define ctx_length(ctx) ((__u32)bpf_xdp_get_buff_len(ctx))
#define ctx_ifindex(ctx) ((ctx)->ingress_ifindex)
#define ctx_socket_cookie(ctx) 0
#define ctx_flow_hash(ctx) 0
#define ctx_mark(ctx) 0

/* Ethertype in network order, 0 if the frame is shorter than its header. */
static __always_inline __be16 ctx_protocol(ctx_t *ctx)
{
	struct ethhdr eth;

	return ctx_load_bytes(ctx, 0, &eth, sizeof(eth)) ? 0 : eth.h_proto;
}

/* Room before the first byte, positive to grow. The new bytes are undefined. */
static __always_inline int ctx_change_head(ctx_t *ctx, __s32 bytes)
{
	return bpf_xdp_adjust_head(ctx, -bytes);
}

/* Cut or extend the frame to this length. */
static __always_inline int ctx_change_tail(ctx_t *ctx, __u32 length)
{
	return bpf_xdp_adjust_tail(ctx, (__s32)(length - ctx_length(ctx)));
}

/* Out of a device; the one that it came by takes the short way. */
static __always_inline int ctx_redirect(ctx_t *ctx, __u32 ifindex)
{
	return ifindex == ctx->ingress_ifindex ? XDP_TX : (int)bpf_redirect(ifindex, 0);
}

#else
typedef struct __sk_buff ctx_t;

#define VLAN_ID 0x0fff		/* of a tag; 0: none */

/* Unspecified is «go on»: programs of others on the hook see the packet too. */
#define CTX_OK TC_ACT_UNSPEC
#define CTX_DROP TC_ACT_SHOT
#define CTX_REDIRECT TC_ACT_REDIRECT

#define ctx_load_bytes(ctx, at, to, size) bpf_skb_load_bytes(ctx, at, to, size)
#define ctx_store_bytes(ctx, at, from, size) bpf_skb_store_bytes(ctx, at, from, size, 0)
#define ctx_length(ctx) ((ctx)->len)
#define ctx_ifindex(ctx) ((ctx)->ifindex)
#define ctx_socket_cookie(ctx) bpf_get_socket_cookie(ctx)
#define ctx_flow_hash(ctx) bpf_get_hash_recalc(ctx)
#define ctx_mark(ctx) ((ctx)->mark)

/* Ethertype in network order, 0 for a frame of a VLAN: it is none of the device's own. The kernel gives it to
 * the VLAN's device, in whatever namespace that is, or to nobody; so it goes on untouched. It has taken the
 * tag out of the bytes, which XDP sees as the type. */
static __always_inline __be16 ctx_protocol(ctx_t *ctx)
{
	return ctx->vlan_present && (ctx->vlan_tci & VLAN_ID) ? 0 : (__be16)ctx->protocol;
}

/* Take off a tag that is a priority alone, so that nobody gets it where the packet is sent on. */
static __always_inline int ctx_drop_priority(ctx_t *ctx)
{
	return ctx->vlan_present && !(ctx->vlan_tci & VLAN_ID) ? bpf_skb_vlan_pop(ctx) : 0;
}

static __always_inline int ctx_change_head(ctx_t *ctx, __u32 bytes)
{
	return bpf_skb_change_head(ctx, bytes, 0);
}

static __always_inline int ctx_change_tail(ctx_t *ctx, __u32 length)
{
	return bpf_skb_change_tail(ctx, length, 0);
}

static __always_inline int ctx_redirect(ctx_t *ctx, __u32 ifindex)
{
	return bpf_redirect(ifindex, 0);
}
#endif

/* Ethernet addresses exchanged: back to who sent it. */
static __always_inline int ctx_swap_macs(ctx_t *ctx)
{
	struct ethhdr eth;
	__u8 mac[ETH_ALEN];

	if (ctx_load_bytes(ctx, 0, &eth, sizeof(eth)))
		return -1;
	__builtin_memcpy(mac, eth.h_dest, ETH_ALEN);
	__builtin_memcpy(eth.h_dest, eth.h_source, ETH_ALEN);
	__builtin_memcpy(eth.h_source, mac, ETH_ALEN);
	return ctx_store_bytes(ctx, 0, &eth, sizeof(eth)) ? -1 : 0;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Flows that the node has without us: of its sockets, and those that netfilter translates or follows. The
 * kernel is asked where it matters, which is once a flow: before a port is taken for another one, and
 * before a packet is held for a request although the node may have asked for it. */
#include "ctx.h"
#include "tuple.h"

/* Set before load: the kernel has the functions that look up netfilter's connections. */
const volatile bool netfilter_lookup = false;

/* Of the kernel, with a name of our own: its header is no UAPI. */
struct netfilter_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;		/* of the tuple that was found */
	__u8 reserved[2];
};

#define NETFILTER_REPLY 1	/* IP_CT_DIR_REPLY */

/* Complete, because libbpf compares the kinds of types. */
struct nf_conn {
};

#ifdef CILIA_XDP
struct nf_conn *bpf_xdp_ct_lookup(ctx_t *ctx, struct bpf_sock_tuple *tuple, __u32 tuple__sz,
				  struct netfilter_opts *opts, __u32 opts__sz) __ksym __weak;
#define netfilter_find bpf_xdp_ct_lookup
#else
struct nf_conn *bpf_skb_ct_lookup(ctx_t *ctx, struct bpf_sock_tuple *tuple, __u32 tuple__sz,
				  struct netfilter_opts *opts, __u32 opts__sz) __ksym __weak;
#define netfilter_find bpf_skb_ct_lookup
#endif
void bpf_ct_release(struct nf_conn *connection) __ksym __weak;

#define TCP_STATE_LISTEN 10

/* A packet's tuple as the kernel is asked for it. In a map, because the stack has no room for it. */
struct own_flow {
	struct bpf_sock_tuple tuple;
	struct netfilter_opts opts;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct own_flow);
	__uint(max_entries, 1);
} cilia_own_flow SEC(".maps");

static __always_inline struct own_flow *own_flow(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cilia_own_flow, &zero);
}

/* Whether netfilter has a connection with the tuple; reply: only one that the packet answers. */
static __always_inline bool own_flow_netfilter(ctx_t *ctx, struct own_flow *flow, __u8 proto,
					       bool reply, const bool v6)
{
	struct nf_conn *connection;

	if (!netfilter_lookup)
		return false;
	__builtin_memset(&flow->opts, 0, sizeof(flow->opts));
	flow->opts.netns_id = BPF_F_CURRENT_NETNS;
	flow->opts.l4proto = proto;
	connection = netfilter_find(ctx, &flow->tuple,
				    v6 ? sizeof(flow->tuple.ipv6) : sizeof(flow->tuple.ipv4),
				    &flow->opts, sizeof(flow->opts));
	if (!connection)
		return false;
	bpf_ct_release(connection);
	return !reply || flow->opts.dir == NETFILTER_REPLY;
}

static __always_inline __u32 own_flow_size(const bool v6)
{
	return v6 ? sizeof(((struct bpf_sock_tuple *)0)->ipv6) :
		    sizeof(((struct bpf_sock_tuple *)0)->ipv4);
}

/* Whether a socket receives packets with the tuple in flow; connected: only one that does not receive from
 * everybody. Two functions, because the kernel has two types of sockets. */
static __always_inline bool own_flow_tcp(ctx_t *ctx, struct own_flow *flow, bool connected,
					 const bool v6)
{
	struct bpf_sock *sk = bpf_skc_lookup_tcp(ctx, &flow->tuple, own_flow_size(v6),
						 BPF_F_CURRENT_NETNS, 0);
	bool found;

	if (!sk)
		return false;
	found = !connected || sk->state != TCP_STATE_LISTEN;
	bpf_sk_release(sk);
	return found;
}

static __always_inline bool own_flow_udp(ctx_t *ctx, struct own_flow *flow, bool connected,
					 const bool v6)
{
	struct bpf_sock *sk = bpf_sk_lookup_udp(ctx, &flow->tuple, own_flow_size(v6),
						BPF_F_CURRENT_NETNS, 0);
	bool found;

	if (!sk)
		return false;
	found = !connected || sk->dst_port;
	bpf_sk_release(sk);
	return found;
}

/* answers: only sockets and connections of netfilter that have sent what such a packet answers. */
static __always_inline bool own_flow_find(ctx_t *ctx, struct own_flow *flow, __u8 proto, bool answers,
					  const bool v6)
{
	if (proto == IPPROTO_TCP) {
		if (own_flow_tcp(ctx, flow, answers, v6))
			return true;
	} else if (own_flow_udp(ctx, flow, answers, v6)) {
		return true;
	}
	return own_flow_netfilter(ctx, flow, proto, answers, v6);
}

/* Whether a socket of the node would receive packets with the tuple in flow, or netfilter knows them. */
static __always_inline bool own_flow_has(ctx_t *ctx, struct own_flow *flow, __u8 proto, const bool v6)
{
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return false;
	return own_flow_find(ctx, flow, proto, false, v6);
}

/* Whether a packet answers a flow that the node opened, by a socket of its own or through netfilter: then
 * it is no request, whatever is served at the port that it comes to. */
static __noinline bool own_flow_answers(ctx_t *ctx, const struct tuple *tuple, bool v6)
{
	struct own_flow *flow = own_flow();

	if (!flow || (tuple->proto != IPPROTO_TCP && tuple->proto != IPPROTO_UDP))
		return false;
	if (v6) {
		address_copy(flow->tuple.ipv6.saddr, tuple->saddr, true);
		address_copy(flow->tuple.ipv6.daddr, tuple->daddr, true);
		flow->tuple.ipv6.sport = tuple->sport;
		flow->tuple.ipv6.dport = tuple->dport;
		return own_flow_find(ctx, flow, tuple->proto, true, true);
	}
	flow->tuple.ipv4.saddr = tuple->saddr[0];
	flow->tuple.ipv4.daddr = tuple->daddr[0];
	flow->tuple.ipv4.sport = tuple->sport;
	flow->tuple.ipv4.dport = tuple->dport;
	return own_flow_find(ctx, flow, tuple->proto, true, false);
}

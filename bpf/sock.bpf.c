/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* Service translation at the socket, for every process below the cgroup that it is attached to.
 *
 * connect and sendmsg choose a backend; recvmsg and getpeername put the service address back. An
 * IPv6 socket that talks IPv4 (::ffff:a.b.c.d) is translated with the IPv4 maps. What is no
 * frontend passes untouched; a frontend without backends is refused at once instead of timing out.
 * post_bind keeps ports of the node's frontends from listeners; release forgets a closed socket.
 */
#include "lib/sock.h"
#include "lib/sock_bind.h"

/* Return values of programs of cgroups. */
#define ALLOW 1
#define REJECT 0

static __always_inline int verdict(int forward)
{
	if (forward >= 0)
		return ALLOW;
	if (have_set_retval)
		bpf_set_retval(forward);
	return REJECT;
}

/* An IPv6 socket (inet6) has an IPv4 peer in the last word of its address. */
static __always_inline void peer_read(const struct bpf_sock_addr *ctx, __be32 *address, const bool inet6,
				      const bool v6)
{
	if (!v6) {
		address[0] = inet6 ? ctx->user_ip6[3] : ctx->user_ip4;
		return;
	}
	address[0] = ctx->user_ip6[0];
	address[1] = ctx->user_ip6[1];
	address[2] = ctx->user_ip6[2];
	address[3] = ctx->user_ip6[3];
}

static __always_inline void peer_write(struct bpf_sock_addr *ctx, const __be32 *address, const bool inet6,
				       const bool v6)
{
	if (v6) {
		ctx->user_ip6[0] = address[0];
		ctx->user_ip6[1] = address[1];
		ctx->user_ip6[2] = address[2];
		ctx->user_ip6[3] = address[3];
	} else if (inet6) {
		ctx->user_ip6[3] = address[0];
	} else {
		ctx->user_ip4 = address[0];
	}
}

static __always_inline bool peer_is_mapped(const struct bpf_sock_addr *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

static __always_inline int forward(struct bpf_sock_addr *ctx, const bool connects, const bool inet6,
				   const bool v6)
{
	__be16 port = (__be16)ctx->user_port;
	__be32 address[4] = {};
	int result;

	peer_read(ctx, address, inet6, v6);
	result = sock_forward(ctx, address, &port, connects, v6);
	if (result == SOCK_TRANSLATED) {
		peer_write(ctx, address, inet6, v6);
		ctx->user_port = port;
	}
	return verdict(result);
}

static __always_inline int reverse(struct bpf_sock_addr *ctx, const bool inet6, const bool v6)
{
	__be16 port = (__be16)ctx->user_port;
	__be32 address[4] = {};

	peer_read(ctx, address, inet6, v6);
	if (sock_reverse(ctx, address, &port, v6)) {
		peer_write(ctx, address, inet6, v6);
		ctx->user_port = port;
	}
	return ALLOW;
}

static __always_inline int forward6(struct bpf_sock_addr *ctx, const bool connects)
{
	return peer_is_mapped(ctx) ? forward(ctx, connects, true, false) :
				     forward(ctx, connects, true, true);
}

static __always_inline int reverse6(struct bpf_sock_addr *ctx)
{
	return peer_is_mapped(ctx) ? reverse(ctx, true, false) : reverse(ctx, true, true);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return forward(ctx, true, false, false);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward(ctx, false, false, false);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, false, false);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, false, false);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx, true);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx, false);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx);
}

SEC("cgroup/post_bind4")
int post_bind4(struct bpf_sock *ctx)
{
	__be16 port = bpf_htons((__u16)ctx->src_port);
	__u8 proto = sock_proto(ctx->protocol);
	__be32 address = ctx->src_ip4;

	if (!proto || !sock_in_host_netns(ctx))
		return ALLOW;
	return verdict(sock_is_taken(proto, &address, port, false) ? -CILIA_EADDRINUSE : 0);
}

SEC("cgroup/post_bind6")
int post_bind6(struct bpf_sock *ctx)
{
	__be32 address[4] = { ctx->src_ip6[0], ctx->src_ip6[1], ctx->src_ip6[2], ctx->src_ip6[3] };
	__be16 port = bpf_htons((__u16)ctx->src_port);
	__u8 proto = sock_proto(ctx->protocol);

	if (!proto || !sock_in_host_netns(ctx))
		return ALLOW;
	return verdict(sock_is_taken_in_both(proto, address, port) ? -CILIA_EADDRINUSE : 0);
}

/* What an unconnected socket sent to stays until user space sees that its owner is gone. */
SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	__be32 address6[4] = { ctx->dst_ip6[0], ctx->dst_ip6[1], ctx->dst_ip6[2], ctx->dst_ip6[3] };
	__be32 address4 = ctx->dst_ip4;
	__be16 port = ctx->dst_port;
	__u64 cookie;

	lb_count_end(ctx);
	if (!port || !sock_proto(ctx->protocol))
		return ALLOW;
	cookie = bpf_get_socket_cookie(ctx);
	if (ctx->family == CILIA_AF_INET)
		sock_forget(cookie, &address4, port, false);
	else if (ipv6_is_mapped(address6))
		sock_forget(cookie, &address6[3], port, false);
	else
		sock_forget(cookie, address6, port, true);
	return ALLOW;
}

char _license[] SEC("license") = "Dual BSD/GPL";

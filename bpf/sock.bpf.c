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

static __always_inline bool is_v4_mapped(const struct bpf_sock_addr *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

static __always_inline void read_ip6(const struct bpf_sock_addr *ctx, __be32 *address)
{
	address[0] = ctx->user_ip6[0];
	address[1] = ctx->user_ip6[1];
	address[2] = ctx->user_ip6[2];
	address[3] = ctx->user_ip6[3];
}

static __always_inline void write_ip6(struct bpf_sock_addr *ctx, const __be32 *address)
{
	ctx->user_ip6[0] = address[0];
	ctx->user_ip6[1] = address[1];
	ctx->user_ip6[2] = address[2];
	ctx->user_ip6[3] = address[3];
}

static __always_inline int forward4(struct bpf_sock_addr *ctx, const bool connects)
{
	__be32 address = ctx->user_ip4;
	__be16 port = (__be16)ctx->user_port;
	int forward = sock4_forward(ctx, &address, &port, connects);

	if (forward == SOCK_TRANSLATED) {
		ctx->user_ip4 = address;
		ctx->user_port = port;
	}
	return verdict(forward);
}

static __always_inline int forward4_mapped(struct bpf_sock_addr *ctx, const bool connects)
{
	__be32 address = ctx->user_ip6[3];
	__be16 port = (__be16)ctx->user_port;
	int forward = sock4_forward(ctx, &address, &port, connects);

	if (forward == SOCK_TRANSLATED) {
		ctx->user_ip6[3] = address;
		ctx->user_port = port;
	}
	return verdict(forward);
}

static __always_inline int forward6(struct bpf_sock_addr *ctx, const bool connects)
{
	__be16 port = (__be16)ctx->user_port;
	__be32 address[4];
	int forward;

	if (is_v4_mapped(ctx))
		return forward4_mapped(ctx, connects);
	read_ip6(ctx, address);
	forward = sock6_forward(ctx, address, &port, connects);
	if (forward == SOCK_TRANSLATED) {
		write_ip6(ctx, address);
		ctx->user_port = port;
	}
	return verdict(forward);
}

static __always_inline int reverse4(struct bpf_sock_addr *ctx)
{
	__be32 address = ctx->user_ip4;
	__be16 port = (__be16)ctx->user_port;

	if (sock4_reverse(ctx, &address, &port)) {
		ctx->user_ip4 = address;
		ctx->user_port = port;
	}
	return ALLOW;
}

static __always_inline int reverse6(struct bpf_sock_addr *ctx)
{
	__be16 port = (__be16)ctx->user_port;
	__be32 address[4];

	read_ip6(ctx, address);
	if (is_v4_mapped(ctx)) {
		if (sock4_reverse(ctx, &address[3], &port)) {
			ctx->user_ip6[3] = address[3];
			ctx->user_port = port;
		}
		return ALLOW;
	}
	if (sock6_reverse(ctx, address, &port)) {
		write_ip6(ctx, address);
		ctx->user_port = port;
	}
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx, true);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx, false);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx);
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

	if (!proto || !sock_in_host_netns(ctx))
		return ALLOW;
	return verdict(sock4_is_taken(proto, ctx->src_ip4, port) ? -CILIA_EADDRINUSE : 0);
}

SEC("cgroup/post_bind6")
int post_bind6(struct bpf_sock *ctx)
{
	__be32 address[4] = { ctx->src_ip6[0], ctx->src_ip6[1], ctx->src_ip6[2], ctx->src_ip6[3] };
	__be16 port = bpf_htons((__u16)ctx->src_port);
	__u8 proto = sock_proto(ctx->protocol);

	if (!proto || !sock_in_host_netns(ctx))
		return ALLOW;
	return verdict(sock6_is_taken_in_both(proto, address, port) ? -CILIA_EADDRINUSE : 0);
}

/* What an unconnected socket sent to stays until user space sees that its owner is gone. */
SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	__be32 address[4] = { ctx->dst_ip6[0], ctx->dst_ip6[1], ctx->dst_ip6[2], ctx->dst_ip6[3] };
	__be16 port = ctx->dst_port;

	lb_count_end(ctx);
	if (!port || !sock_proto(ctx->protocol))
		return ALLOW;
	if (ctx->family == CILIA_AF_INET)
		sock4_forget(bpf_get_socket_cookie(ctx), ctx->dst_ip4, port);
	else if (ipv6_is_mapped(address))
		sock4_forget(bpf_get_socket_cookie(ctx), address[3], port);
	else
		sock6_forget(bpf_get_socket_cookie(ctx), address, port);
	return ALLOW;
}

char _license[] SEC("license") = "Dual BSD/GPL";

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* Service translation at the socket, for every process below the cgroup that it is attached to.
 *
 * connect and sendmsg choose a backend; recvmsg and getpeername put the service address back. An
 * IPv6 socket that talks IPv4 (::ffff:a.b.c.d) is translated with the IPv4 maps. What is no
 * frontend passes untouched; a frontend without backends is refused at once instead of timing out.
 */
#include "lib/sock.h"

/* Return values of cgroup socket-address programs. */
#define ALLOW 1
#define REJECT 0

static __always_inline int verdict(int forward)
{
	if (forward != SOCK_REFUSED)
		return ALLOW;
	if (have_set_retval)
		bpf_set_retval(-CILIA_ECONNREFUSED);
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

static __always_inline int forward4(struct bpf_sock_addr *ctx)
{
	__be32 address = ctx->user_ip4;
	__be16 port = (__be16)ctx->user_port;
	int forward = sock4_forward(ctx, &address, &port);

	if (forward == SOCK_TRANSLATED) {
		ctx->user_ip4 = address;
		ctx->user_port = port;
	}
	return verdict(forward);
}

static __always_inline int forward4_mapped(struct bpf_sock_addr *ctx)
{
	__be32 address = ctx->user_ip6[3];
	__be16 port = (__be16)ctx->user_port;
	int forward = sock4_forward(ctx, &address, &port);

	if (forward == SOCK_TRANSLATED) {
		ctx->user_ip6[3] = address;
		ctx->user_port = port;
	}
	return verdict(forward);
}

static __always_inline int forward6(struct bpf_sock_addr *ctx)
{
	__be16 port = (__be16)ctx->user_port;
	__be32 address[4];
	int forward;

	if (is_v4_mapped(ctx))
		return forward4_mapped(ctx);
	read_ip6(ctx, address);
	forward = sock6_forward(ctx, address, &port);
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
	return forward4(ctx);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx);
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
	return forward6(ctx);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx);
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

char _license[] SEC("license") = "Dual BSD/GPL";

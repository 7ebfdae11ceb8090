/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Checksums corrected by a difference, never computed anew (RFC 1624; SCTP: a CRC is linear).
 *
 * A difference comes from bpf_csum_diff, over multiples of 4 bytes. An skb may leave its checksum to
 * the device (CHECKSUM_PARTIAL) or carry a sum that the device made, so there the kernel's helpers do
 * it; an XDP packet is plain bytes.
 */
#include "ctx.h"

#define CSUM_PSEUDO 1		/* what changed is in the pseudo header, not behind the checksum */
#define CSUM_UDP 2		/* 0 means «none» and stays */
#define CSUM_V6 4

static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

/* A checksum field after a difference behind it. */
static __always_inline __be16 csum_changed(__be16 old, __s64 diff)
{
	return csum_fold((__u64)(__u16)~old + (__u32)diff);
}

/* Of two values of a 16-bit field. */
static __always_inline __s64 csum_diff16(__be16 from, __be16 to, __s64 seed)
{
	__be32 old = from, new = to;

	return bpf_csum_diff(&old, sizeof(old), &new, sizeof(new), (__u32)seed);
}

#ifdef CILIA_XDP
static __always_inline int csum_apply(ctx_t *ctx, __u32 at, __s64 diff, int flags)
{
	__be16 csum;

	if (ctx_load_bytes(ctx, at, &csum, sizeof(csum)))
		return -1;
	if ((flags & CSUM_UDP) && !csum)
		return 0;
	csum = csum_changed(csum, diff);
	if ((flags & CSUM_UDP) && !csum)
		csum = 0xffff;
	return ctx_store_bytes(ctx, at, &csum, sizeof(csum)) ? -1 : 0;
}

#define ctx_l3_csum_diff(ctx, at, diff) csum_apply(ctx, at, diff, 0)
#define ctx_l4_csum_diff(ctx, at, diff, flags) csum_apply(ctx, at, diff, flags)
#else
#define CSUM_F_IPV6 (1ULL << 7)	/* BPF_F_IPV6, newer than some headers */

static __always_inline int ctx_l3_csum_diff(ctx_t *ctx, __u32 at, __s64 diff)
{
	return bpf_l3_csum_replace(ctx, at, 0, (__u32)diff, 0) ? -1 : 0;
}

/* In IPv6 a changed address and its pseudo header cancel out in the sum that a device made, for there
 * is no header checksum between them. Kernels without the flag (before 6.16) refuse it; these take
 * such a packet for one with a wrong sum from the device, and compute it again. */
static __always_inline int ctx_l4_csum_diff(ctx_t *ctx, __u32 at, __s64 diff, int flags)
{
	__u64 how = 0;

	if (flags & CSUM_PSEUDO)
		how |= BPF_F_PSEUDO_HDR;
	if (flags & CSUM_UDP)
		how |= BPF_F_MARK_MANGLED_0;
	if ((flags & CSUM_V6) && (flags & CSUM_PSEUDO) &&
	    !bpf_l4_csum_replace(ctx, at, 0, (__u32)diff, how | CSUM_F_IPV6))
		return 0;
	return bpf_l4_csum_replace(ctx, at, 0, (__u32)diff, how) ? -1 : 0;
}
#endif

#define CRC32C_POLYNOMIAL 0x82f63b78	/* reflected: bit 31 is x^0 */
#define CRC32C_X8 0x00800000		/* x^8: one byte further */

/* Product in GF(2)[x] modulo the polynomial. */
static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		b = (b >> 1) ^ (CRC32C_POLYNOMIAL & -(b & 1));
		a <<= 1;
	}
	return product;
}

/* What a change of the first 4 of `size` bytes changes in their CRC32c: change * x^(8 * size).
 * Both in little-endian order, which is how SCTP sends its CRC. Not static: verified once, apart. */
__noinline __u32 crc32c_change(__u32 change, __u32 size)
{
	__u32 power = CRC32C_X8;

	for (int bit = 0; bit < 16; bit++) {
		if (size & (1U << bit))
			change = crc32c_multiply(change, power);
		power = crc32c_multiply(power, power);
	}
	return change;
}

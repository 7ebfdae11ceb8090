/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The hash that gives a flow its position in a Maglev table: Bob Jenkins' lookup3 over 32-bit words,
 * as the kernel's jhash2 (include/linux/jhash.h) computes it.
 *
 * Words, each the number that the wire's bytes are in network order:
 *	IPv4: source address, (destination port << 16 | source port), protocol; seed lb_hash4_seed
 *	IPv6: the four words of the source address, then the same two; seed lb_hash6_seed
 * The position is the hash modulo the table's size. The destination address is left out, so that a
 * client finds its backend through any node; the port tells services of one client apart.
 */
#include "node_config.h"
#include "tuple.h"

#define LB_HASH_INIT 0xdeadbeef

static __always_inline __u32 rotate_left(__u32 word, int bits)
{
	return (word << bits) | (word >> (32 - bits));
}

static __always_inline void lb_hash_mix(__u32 *a, __u32 *b, __u32 *c)
{
	*a -= *c; *a ^= rotate_left(*c, 4);  *c += *b;
	*b -= *a; *b ^= rotate_left(*a, 6);  *a += *c;
	*c -= *b; *c ^= rotate_left(*b, 8);  *b += *a;
	*a -= *c; *a ^= rotate_left(*c, 16); *c += *b;
	*b -= *a; *b ^= rotate_left(*a, 19); *a += *c;
	*c -= *b; *c ^= rotate_left(*b, 4);  *b += *a;
}

static __always_inline __u32 lb_hash_final(__u32 a, __u32 b, __u32 c)
{
	c ^= b; c -= rotate_left(b, 14);
	a ^= c; a -= rotate_left(c, 11);
	b ^= a; b -= rotate_left(a, 25);
	c ^= b; c -= rotate_left(b, 16);
	a ^= c; a -= rotate_left(c, 4);
	b ^= a; b -= rotate_left(a, 14);
	c ^= b; c -= rotate_left(b, 24);
	return c;
}

static __always_inline __u32 lb_hash(const struct tuple *tuple, const bool v6)
{
	__u32 ports = (__u32)bpf_ntohs(tuple->dport) << 16 | bpf_ntohs(tuple->sport);
	__u32 length = v6 ? 6 : 3;
	__u32 a, b, c;

	a = b = c = LB_HASH_INIT + (length << 2) + (v6 ? lb_hash6_seed : lb_hash4_seed);
	a += bpf_ntohl(tuple->saddr[0]);
	if (!v6)
		return lb_hash_final(a, b + ports, c + tuple->proto);
	b += bpf_ntohl(tuple->saddr[1]);
	c += bpf_ntohl(tuple->saddr[2]);
	lb_hash_mix(&a, &b, &c);
	return lb_hash_final(a + bpf_ntohl(tuple->saddr[3]), b + ports, c + tuple->proto);
}

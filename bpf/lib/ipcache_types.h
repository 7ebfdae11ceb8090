/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* cilia_ipcache: the identity behind each prefix, the longest that covers an address; see lb_types.h for what
 * this file may contain.
 */

/* Bits of the key in front of the address: cluster, pad and family. They never differ in part, so an entry
 * covers addresses of its own cluster and family alone. */
#define IPCACHE_STATIC_BITS 32

/* ipcache_value.identity: the node itself. */
#define IDENTITY_HOST 1

/* ipcache_key.family */
#define IPCACHE_FAMILY_IPV4 1
#define IPCACHE_FAMILY_IPV6 2

/* ipcache_value.flags */
#define IPCACHE_FLAG_SKIPTUNNEL 0x01
#define IPCACHE_FLAG_HASTUNNEL 0x02
#define IPCACHE_FLAG_IPV6TUNNEL 0x04
#define IPCACHE_FLAG_REMOTECLUSTER 0x08

struct ipcache_key {
	__u32 prefix_bits;	/* the static ones and those of the address */
	__u16 cluster_id;	/* 0 = this one */
	__u8 pad;
	__u8 family;
	__be32 address[4];	/* of IPv4 the first word */
};

struct ipcache_value {
	__u32 identity;
	__be32 tunnel[4];	/* the node behind which the prefix is; 0 = none */
	__u16 pad;
	__u8 encrypt_key;
	__u8 flags;
};

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* cilia_endpoints: the workloads of this node whose network is ours, by the device on the node's side; see
 * lb_types.h for what this file may contain.
 */
struct endpoint_key {
	__u32 ifindex;
};

struct endpoint {
	__be32 address6[4];	/* 0 = none */
	__be32 address4;
	__u32 identity;
	__u16 id;
	__u8 mac[6];		/* of the workload's device */
	__u8 node_mac[6];	/* of the device on the node's side */
	__u16 flags;
};

/* Of endpoints: another plugin made its devices, and neighbours answer for themselves. */
#define ENDPOINT_CHAINED 1

/* cilia_lxc: the same by address, for who sends to them. An IPv4 address is the first word. */
struct endpoint_address {
	__be32 address[4];
	__u8 v6;
	__u8 pad[3];
};

struct endpoint_place {
	__u32 ifindex;
	__u32 identity;
	__u16 id;
	__u8 mac[6];
	__u8 node_mac[6];
	__u16 pad;
};

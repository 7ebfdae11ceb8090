/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Keys and values of source translation; see lb_types.h for what this file may contain.
 *
 * A translated flow has an entry NAT_IN under the tuple of its replies, with the destination that these
 * get. The way there is a client's entry of connection tracking (CT_SNAT); for connections of the node
 * itself it is an entry NAT_OUT under the tuple as it came, with the source that it gets, and the two
 * are made and refreshed together.
 */
#define NAT_OUT 0
#define NAT_IN 1

/* nat4_value.flags */
#define NAT_CLOSING 0x0001	/* FIN or RST was seen in both directions, or RST in one */
#define NAT_DSR 0x0002		/* NAT_OUT of a reply: address and port are the frontend's; it has no NAT_IN */
#define NAT_SEEN_REPLY 0x0004
#define NAT_ORIGIN_FIN 0x0008	/* both entries of a flow have the same flags */
#define NAT_REPLY_FIN 0x0010
#define NAT_CONFIRMED 0x0020	/* TCP: the opener has acknowledged something */
#define NAT_ENDED 0x0040	/* NAT_IN: its workload is gone, nobody gets replies */

/* cilia_snat4, cilia_snat6: LRU. Ports of ICMP echo as in ct4_key. */
struct nat4_key {
	__be32 daddr;
	__be32 saddr;
	__be16 dport;
	__be16 sport;
	__u8 proto;
	__u8 direction;		/* NAT_* */
	__u16 pad;
};

struct nat6_key {
	__be32 daddr[4];
	__be32 saddr[4];
	__be16 dport;
	__be16 sport;
	__u8 proto;
	__u8 direction;
	__u16 pad;
};

struct nat4_value {
	__be32 address;		/* the translated source (NAT_OUT) or destination (NAT_IN) */
	__be16 port;
	__u16 flags;		/* NAT_* */
	__u32 expires_s;	/* monotonic clock, seconds; both entries are refreshed */
	__u32 created_s;	/* 0: another flow is taking the port over */
	__u32 rev_nat;		/* NAT_IN: id of the frontend, 0 = none */
	__be32 frontend;	/* NAT_IN: its address, the source of replies */
	__u32 pad[3];
	__be16 frontend_port;	/* 0: there is none, or an earlier version wrote the entry */
	__u16 pad2;
};

struct nat6_value {
	__be32 address[4];
	__be16 port;
	__u16 flags;
	__u32 expires_s;
	__u32 created_s;
	__u32 rev_nat;
	__be32 frontend[4];
	__be16 frontend_port;
	__u16 pad;
};

/* cilia_signal: a destination for which the ports of the node are nearly or all in use. */
struct nat_pressure {
	__be32 address[4];	/* of the backend; an IPv4 address is the first word */
	__be16 port;
	__u8 proto;
	__u8 family;		/* 4 or 6 */
	__u8 refused;		/* 1: no port was found */
	__u8 pad[3];
};

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Keys and values of connection tracking; see lb_types.h for what this file may contain.
 *
 * A connection has one entry, under the tuple of its first packet as it leaves the translation: from
 * the client to the backend. A connection to a frontend has a second one, of direction CT_SERVICE,
 * under the tuple that the client sees: it holds the backend that was chosen. A reply is found by
 * exchanging source and destination. Numbers of frontends and backends change when a Service is made
 * anew: replies depend on the frontend's address, which the first entry has.
 *
 * Where the source is translated too (CT_SNAT), the CT_SERVICE entry holds that as well and is the only
 * one here: replies are found in cilia_snat4 or cilia_snat6.
 */

/* ct4_key.direction: where the entry was made, relative to the workload of the hook. A flow of workloads whose
 * network is ours has one at either end that is on this node. */
#define CT_EGRESS 0		/* the workload, or the world beyond a device, opened it */
#define CT_INGRESS 1		/* it was opened towards the workload */
#define CT_SERVICE 2		/* tuple of the frontend, before translation */

/* ct_entry.flags */
#define CT_SEEN_REPLY 0x0001
#define CT_ORIGIN_CLOSING 0x0002	/* FIN or RST from who opened it */
#define CT_REPLY_CLOSING 0x0004
#define CT_NODE_PORT 0x0008		/* entered through a device of the node: replies leave by one */
#define CT_HAIRPIN 0x0010		/* a workload that reaches itself through a frontend */
#define CT_DSR 0x0020			/* the node that answers is not the one that was asked */
#define CT_PROXY_REDIRECT 0x0040
#define CT_FROM_TUNNEL 0x0080
#define CT_SNAT 0x0100			/* CT_SERVICE: the source becomes nat_address:nat_port */
#define CT_NON_SYN 0x0200		/* TCP that was first seen in its middle */
#define CT_OTHER_PORT 0x0400		/* the client has another port behind the translation: nat_port has it
					 * (CT_SERVICE), or the client's own one */
#define CT_OTHER_NODE 0x0800		/* CT_EGRESS: a node port that another node was asked for: the frontend
					 * of the maps has the address 0 */
#define CT_LOCAL 0x1000			/* CT_SERVICE: the backend was on this node when it began */

/* cilia_ct4_tcp, cilia_ct4_any (UDP, SCTP, ICMP): LRU. For ICMP echo the identifier stands in both
 * ports' places: sport in a request, dport in an answer, the other 0. */
struct ct4_key {
	__be32 daddr;
	__be32 saddr;
	__be16 dport;
	__be16 sport;
	__u8 proto;
	__u8 direction;		/* CT_* */
	__u16 pad;
};

struct ct6_key {
	__be32 daddr[4];
	__be32 saddr[4];
	__be16 dport;
	__be16 sport;
	__u8 proto;
	__u8 direction;
	__u16 pad;
};

/* ct_entry.policy_generation: this bit says that the verdict is no. */
#define VERDICT_DENIED 0x80000000

/* The same for both families. Policy and encryption fill what load balancing leaves 0. */
struct ct_entry {
	__u64 packets;		/* of the direction that opened it; 0 unless counted */
	__u64 bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
	__u32 expires_s;	/* monotonic clock, seconds; collected from user space afterwards */
	__u32 created_s;
	__u32 backend_id;	/* CT_SERVICE: the backend that it goes to */
	__u32 rev_nat;		/* id of the frontend, 0 = none */
	/* The verdict; these two are read and written as one, so their place is a multiple of 8. */
	__u32 remote_identity;	/* of the other end, for which it was made */
	__u32 policy_generation;	/* by which it was made, perhaps with VERDICT_DENIED; 0: by none yet */
	__u32 rule_cookie;	/* which rule let it in */
	__u32 ifindex;		/* device of the first packet */
	__be16 frontend_port;	/* CT_EGRESS: of the frontend; 0: it has none, or an earlier version wrote it */
	__u16 flags;		/* CT_* */
	__u8 tcp_flags;		/* all seen from who opened it */
	__u8 reply_tcp_flags;
	__be16 nat_port;	/* CT_SNAT, CT_OTHER_PORT */
	__be32 nat_address[4];	/* CT_SNAT; CT_EGRESS: of the frontend that was asked; CT_SERVICE of what is
				 * returned directly: the next hop that was told the frontend, or 0. An IPv4
				 * address is the first word */
};

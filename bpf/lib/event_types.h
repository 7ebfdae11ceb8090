/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What the datapath reports, one record an event; see lb_types.h for what this file may contain.
 *
 * The header is the same for every kind. Fields are appended and never moved: header_size tells a reader how
 * many there are. Those that are missing are 0, and those that it does not know it skips, as it skips a kind
 * that it has no name for and a version above its own. During an upgrade programs of two builds write into
 * one ring buffer. Version 1 had the fields up to pad2.
 */
#define EVENT_VERSION 2
#define EVENT_HEADER_1_BYTES 80

/* event_header.kind */
#define EVENT_DROP 1
#define EVENT_TRACE 2
#define EVENT_VERDICT 3
#define EVENT_SOCKET 4

/* event_header.direction, as seen from the workload or node that the program belongs to. */
#define DIRECTION_UNKNOWN 0
#define DIRECTION_INGRESS 1
#define DIRECTION_EGRESS 2

/* Added to a direction that a program reports at the device of the packet's sender, whose endpoint row then
 * tells the source. A report on the way out of the sender (DIRECTION_EGRESS) is always made there. */
#define AT_SENDER 0x80

/* event_header.layer: how the captured data begins. */
#define LAYER_NONE 0
#define LAYER_ETHERNET 2
#define LAYER_IP 3

/* event_header.flags */
#define EVENT_FLAG_REPLY 0x01		/* the packet goes to who opened the flow; valid if flow_state is known */
#define EVENT_FLAG_ENCRYPTED 0x02
#define EVENT_FLAG_V6 0x04		/* original_source is an IPv6 address */

/* event_header.observation_point: where a packet was seen: point(name of the number, number as in flow.proto,
 * name that people see). Points without a hook of ours are for later ones. */
#define TRACE_POINTS(point) \
	point(TRACE_TO_PROXY, 1, "to-proxy") \
	point(TRACE_TO_HOST, 2, "to-host") \
	point(TRACE_TO_STACK, 3, "to-stack") \
	point(TRACE_TO_OVERLAY, 4, "to-overlay") \
	point(TRACE_FROM_ENDPOINT, 5, "from-endpoint") \
	point(TRACE_FROM_PROXY, 6, "from-proxy") \
	point(TRACE_FROM_HOST, 7, "from-host") \
	point(TRACE_FROM_STACK, 8, "from-stack") \
	point(TRACE_FROM_OVERLAY, 9, "from-overlay") \
	point(TRACE_FROM_NETWORK, 10, "from-network") \
	point(TRACE_TO_NETWORK, 11, "to-network") \
	point(TRACE_FROM_CRYPTO, 12, "from-crypto") \
	point(TRACE_TO_CRYPTO, 13, "to-crypto") \
	point(TRACE_TO_ENDPOINT, 101, "to-endpoint")

#define TRACE_NUMBER(name, number, ...) name = number,
enum trace_point {
	TRACE_POINTS(TRACE_NUMBER)
};

/* event_header.flow_state: state(name of the number, number as TraceReason of flow.proto, name that people
 * see): of connection tracking, for this packet. */
#define FLOW_STATES(state) \
	state(FLOW_UNKNOWN, 0, "unknown") \
	state(FLOW_NEW, 1, "new") \
	state(FLOW_ESTABLISHED, 2, "established") \
	state(FLOW_REPLY, 3, "reply") \
	state(FLOW_RELATED, 4, "related")

#define FLOW_NUMBER(name, number, ...) name = number,
enum flow_state {
	FLOW_STATES(FLOW_NUMBER)
};

/* How many of the packets that pass are left out, the fewest first; numbers and names as in the field. */
#define MONITOR_LEVELS(level) \
	level(MONITOR_NONE, 0, "none") \
	level(MONITOR_LOWEST, 1, "lowest") \
	level(MONITOR_LOW, 2, "low") \
	level(MONITOR_MEDIUM, 3, "medium") \
	level(MONITOR_MAXIMUM, 4, "maximum")

#define MONITOR_NUMBER(name, number, ...) name = number,
enum monitor_level {
	MONITOR_LEVELS(MONITOR_NUMBER)
};

/* event_header.file: the source file that reported, with line the place in it: file(name of the number,
 * number, name of the file). */
#define FILES(file) \
	file(FILE_UNKNOWN, 0, "unknown") \
	file(FILE_LB_H, 1, "lb.h") \
	file(FILE_SOCK_H, 2, "sock.h") \
	file(FILE_SOCK_BPF_C, 3, "sock.bpf.c") \
	file(FILE_PACKET_H, 4, "packet.h") \
	file(FILE_REWRITE_H, 5, "rewrite.h") \
	file(FILE_LB_PACKET_H, 6, "lb_packet.h") \
	file(FILE_CT_H, 7, "ct.h") \
	file(FILE_LXC_BPF_C, 8, "lxc.bpf.c") \
	file(FILE_NAT_H, 9, "nat.h") \
	file(FILE_NAT_FAMILY_H, 10, "nat_family.h") \
	file(FILE_FORWARD_H, 11, "forward.h") \
	file(FILE_DSR_H, 12, "dsr.h") \
	file(FILE_IPIP_H, 13, "ipip.h") \
	file(FILE_HOST_BPF_C, 14, "host.bpf.c") \
	file(FILE_XDP_BPF_C, 15, "xdp.bpf.c") \
	file(FILE_NODEPORT_H, 16, "nodeport.h") \
	file(FILE_NODEPORT_DSR_H, 17, "nodeport_dsr.h") \
	file(FILE_REWRITE_ENDS_H, 18, "rewrite_ends.h") \
	file(FILE_LB_DIRECT_H, 19, "lb_direct.h") \
	file(FILE_ENDPOINT_H, 20, "endpoint.h") \
	file(FILE_DELIVER_H, 21, "deliver.h") \
	file(FILE_NODEPORT_LEAVES_H, 22, "nodeport_leaves.h") \
	file(FILE_POLICY_H, 23, "policy.h") \
	file(FILE_FLOW_H, 24, "flow.h") \
	file(FILE_TEST_BPF_C, 255, "test.bpf.c")

#define FILE_NUMBER(name, number, ...) name = number,
enum event_file {
	FILES(FILE_NUMBER)
};

/* Capture of packet data in one record, at most; more is cut and shows in the two lengths. */
#define EVENT_CAPTURE_BYTES 128

struct event_header {
	__u8 version;			/* EVENT_VERSION */
	__u8 kind;			/* EVENT_* */
	__u16 header_size;		/* offset of the captured data */
	__u32 cpu;
	__u64 time_ns;			/* CLOCK_MONOTONIC */
	__u64 socket_cookie;		/* 0 if there is no socket */
	__u64 netns_cookie;		/* 0 if unknown */
	__u32 pid;			/* thread group; 0 outside of a process */
	__u32 ifindex;
	__u32 source_identity;
	__u32 destination_identity;
	__u32 rule_cookie;		/* which rule decided; 0 = none */
	__s16 reason;			/* DROP_* for drops and verdicts, else 0 */
	__u16 line;
	__u8 file;			/* FILE_* */
	__u8 direction;			/* DIRECTION_* */
	__u8 layer;			/* LAYER_* */
	__u8 flags;			/* EVENT_FLAG_* */
	__u16 captured_length;
	__u16 pad;
	__u32 original_length;
	__u32 pad2;
	__u64 trace_id;			/* of the packet's IP option; nobody fills it yet: 0 */
	__u32 flow_hash;		/* as the kernel hashes the flow; 0 by XDP */
	__u32 mark;			/* of the packet; 0 by XDP */
	__u32 policy_generation;	/* of the policy that decided; nobody fills it yet: 0 */
	__u32 tunnel_vni;		/* with tunnel_protocol */
	__s32 extension;		/* more about a drop, by its reason; nobody fills it yet: 0 */
	__u16 source_endpoint;		/* of this node; 0: none, or unknown */
	__u16 destination_endpoint;
	__u8 observation_point;		/* TRACE_*, of EVENT_TRACE */
	__u8 flow_state;		/* FLOW_* */
	__u8 tunnel_protocol;		/* 1 VXLAN, 2 Geneve; nobody fills it yet: 0 */
	__u8 pad3;
	__be32 original_source[4];	/* where it was translated here; 0: it was not */
	__u32 pad4;
};

/* cilia_listeners: what somebody reads, so that nothing is reported to nobody. At key 0: a bit a kind,
 * 1 << EVENT_*. */
struct event_listeners {
	__u32 kinds;
};

/* cilia_lost: events that found the ring buffer full, by kind, a CPU. */
#define EVENT_KINDS 16

struct event_lost {
	__u64 count;
};

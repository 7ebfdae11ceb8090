/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What the datapath reports, one record an event; see lb_types.h for what this file may contain.
 *
 * The header is the same for every kind. A reader skips what it does not know: a record whose version
 * differs, a kind that it has no name for, and the bytes between header_size and the captured data, which
 * is where later kinds (L7, processes) put fields of their own.
 */
#define EVENT_VERSION 1

/* event_header.kind */
#define EVENT_DROP 1
#define EVENT_TRACE 2
#define EVENT_VERDICT 3
#define EVENT_SOCKET 4

/* event_header.direction, as seen from the workload or node that the program belongs to. */
#define DIRECTION_UNKNOWN 0
#define DIRECTION_INGRESS 1
#define DIRECTION_EGRESS 2

/* event_header.layer: how the captured data begins. */
#define LAYER_NONE 0
#define LAYER_ETHERNET 2
#define LAYER_IP 3

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
	__u8 flags;			/* 0 */
	__u16 captured_length;
	__u16 pad;
	__u32 original_length;
	__u32 pad2;
};

/* cilia_lost: events that found the ring buffer full, by kind, a CPU. */
#define EVENT_KINDS 16

struct event_lost {
	__u64 count;
};

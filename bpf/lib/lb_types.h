/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Keys and values of the load-balancer maps, compiled into BPF and read by cffi_build.py.
 *
 * This file is held to what both readers understand: structs, integer defines, and macros that list
 * numbers with their texts (drop_types.h); no include, no attribute, no expression. Every gap is an
 * explicit pad field and must be written as zero, because the kernel compares keys byte by byte. Types
 * named __be* are in network byte order, all others in the order of the host.
 */

/* Scope of a frontend: traffic from outside the cluster, or from pods and nodes inside. */
#define LB_SCOPE_EXTERNAL 0
#define LB_SCOPE_INTERNAL 1

/* lb_service.type: why the frontend exists. */
#define LB_TYPE_CLUSTER_IP 0
#define LB_TYPE_NODE_PORT 1
#define LB_TYPE_EXTERNAL_IPS 2
#define LB_TYPE_LOAD_BALANCER 3
#define LB_TYPE_HOST_PORT 4
#define LB_TYPE_LOCAL_REDIRECT 5

/* lb_service.algorithm: how a backend is chosen; undef means the default of the node. */
#define LB_ALG_UNDEF 0
#define LB_ALG_RANDOM 1
#define LB_ALG_MAGLEV 2
#define LB_ALG_LEAST_CONNECTIONS 3

/* lb_service.flags, in the order in which the map dump prints them. */
#define LB_SVC_EXT_LOCAL 0x0001
#define LB_SVC_INT_LOCAL 0x0002
#define LB_SVC_TWO_SCOPES 0x0004
#define LB_SVC_AFFINITY 0x0008
#define LB_SVC_NON_ROUTABLE 0x0010
#define LB_SVC_SOURCE_RANGE 0x0020
#define LB_SVC_SOURCE_DENY 0x0040
#define LB_SVC_46X64 0x0080
#define LB_SVC_L7 0x0100
#define LB_SVC_LOOPBACK 0x0200
#define LB_SVC_DELEGATE 0x0400
#define LB_SVC_QUARANTINED 0x0800
#define LB_SVC_DSR 0x1000
#define LB_SVC_SOURCE_INSIDE 0x2000	/* source ranges are for pods and this node too */
#define LB_SVC_SOURCE_NOT_NODE 0x4000	/* and keep this node out */

/* lb4_backend.state */
#define LB_BE_ACTIVE 0
#define LB_BE_TERMINATING 1
#define LB_BE_QUARANTINED 2
#define LB_BE_MAINTENANCE 3

/* cilia_lb4_svc: a frontend and its slots. Slot 0 is the master entry, written last when a frontend
 * grows and first when it shrinks; slots 1..count hold the backends in use, count+1..count+qcount
 * those that get no new connections. */
struct lb4_key {
	__be32 address;		/* 0 in a surrogate: any address of this node */
	__be16 dport;		/* 0 in a wildcard entry */
	__u16 slot;
	__u8 proto;		/* IPPROTO_*, 0 = any */
	__u8 scope;		/* LB_SCOPE_* */
	__u16 pad;
};

struct lb6_key {
	__be32 address[4];
	__be16 dport;
	__u16 slot;
	__u8 proto;
	__u8 scope;
	__u16 pad;
};

struct lb_service {
	__u32 backend_id;		/* slot > 0: key of the backend map */
	__u32 rev_nat;			/* id of the frontend, key of cilia_lb4_rev and cilia_lb6_rev */
	__u32 affinity_timeout_s;	/* slot 0, 0 = no affinity */
	__u32 flags;			/* LB_SVC_* */
	__u16 count;			/* slot 0: usable slots */
	__u16 qcount;			/* slot 0: slots behind them, kept for connections that exist */
	__be16 l7_port;			/* slot 0 with LB_SVC_L7: port of the proxy on this node */
	__u16 weight;			/* slot > 0 */
	__u8 type;			/* LB_TYPE_* */
	__u8 algorithm;			/* LB_ALG_* */
	__u16 owner;			/* slot 0: hash of the Service's name for agents to come, 0 = not told */
};

/* cilia_lb4_be: backend id -> address that serves. */
struct lb_backend_key {
	__u32 id;
};

struct lb4_backend {
	__be32 address;
	__be16 port;
	__u8 proto;
	__u8 state;		/* LB_BE_* */
	__u32 cluster_id;
	__u8 zone;
	__u8 flags;
	__u16 pad;
};

struct lb6_backend {
	__be32 address[4];
	__be16 port;
	__u8 proto;
	__u8 state;
	__u32 cluster_id;
	__u8 zone;
	__u8 flags;
	__u16 pad;
};

/* cilia_lb4_rev: id of a frontend -> its address, the source of replies. */
struct lb_rev_key {
	__u32 id;
};

struct lb4_rev {
	__be32 address;
	__be16 port;
	__u16 pad;
};

struct lb6_rev {
	__be32 address[4];
	__be16 port;
	__u16 pad;
};

/* cilia_lb4_sk: (socket, backend it was sent to) -> the frontend that its owner asked for. */
struct sock4_key {
	__u64 cookie;
	__be32 address;
	__be16 port;
	__u16 pad;
};

struct sock4_value {
	__be32 address;
	__be16 port;
	__u16 pad;
	__u32 rev_nat;
};

struct sock6_key {
	__u64 cookie;
	__be32 address[4];
	__be16 port;
	__u16 pad;
	__u32 pad2;
};

struct sock6_value {
	__be32 address[4];
	__be16 port;
	__u16 pad;
	__u32 rev_nat;
};

/* cilia_lb4_aff: (client, frontend) -> the backend it stays with. Written by programs. A client at a
 * socket is its network namespace, known by its cookie; one at a device is its address. */
struct lb4_affinity_key {
	__u64 client;		/* netns cookie, or an __be32 address in the first 4 bytes */
	__u32 rev_nat;
	__u32 is_netns;		/* 1: client is a cookie */
};

struct lb6_affinity_key {
	__u64 client[2];	/* netns cookie and 0, or an address */
	__u32 rev_nat;
	__u32 is_netns;
};

struct lb_affinity {
	__u64 last_used_ns;	/* monotonic clock */
	__u32 backend_id;
	__u32 pad;
};

/* cilia_lb4_affm: the backends that clients of a frontend may stay with. What is not there any more
 * loses its clients. The rev_nat stands in bytes 4-7, as in the key of source ranges. */
struct lb_affinity_match_key {
	__u32 backend_id;
	__u32 rev_nat;
};

/* cilia_lb4_src: source prefixes that a frontend names, longest match; whether they are let in or
 * kept out says LB_SVC_SOURCE_DENY. A prefix counts only if it was written with the same meaning: while
 * one becomes the other, each client is judged by the old ranges or by the new ones. */
struct lb4_source_key {
	__u32 prefix_bits;	/* those of rev_nat, 32, and those of the address */
	__u32 rev_nat;
	__be32 address;
};

struct lb6_source_key {
	__u32 prefix_bits;
	__u32 rev_nat;
	__be32 address[4];
};

struct lb_source {
	__u32 meaning;
};

#define LB_SOURCE_EITHER 0	/* written by a version that did not say */
#define LB_SOURCE_LET_IN 1
#define LB_SOURCE_KEPT_OUT 2

/* Value where the key says all. */
struct lb_present {
	__u32 pad;
};

/* cilia_lb4_mglv: rev_nat -> an array of these with a backend id for each position, 256 an element:
 * the kernel rounds elements up to 8 bytes and copies them one by one. Behind the last position are
 * zeros, and in the last four words what the table was built from. */
struct lb_maglev_part {
	__u32 backend_id[256];
};

/* cilia_lb_load: connections of this node's sockets, by place of a backend's id. */
struct lb_load {
	__s32 connections;
};

/* cilia_lb_counted: of a socket. */
struct lb_counted {
	__u32 position;		/* where it is counted, plus 1; 0: nowhere */
};

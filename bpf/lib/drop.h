/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* A refusal: why and where, in one negative number.
 *
 * A function that can refuse a packet returns 0 or REFUSE(DROP_…), and its callers pass that on; the
 * program's entry counts it once (drop_refused in event.h), with the line where it was decided.
 */
#include "drop_types.h"
#include "event_types.h"

/* The number of a source file; compared and folded at compile time, so no string reaches the kernel. */
#define FILE_IS(name, number) if (!__builtin_strcmp(file, name)) return number
static __always_inline __u8 file_number(const char *file)
{
	FILE_IS("lb.h", FILE_LB_H);
	FILE_IS("sock.h", FILE_SOCK_H);
	FILE_IS("sock.bpf.c", FILE_SOCK_BPF_C);
	FILE_IS("packet.h", FILE_PACKET_H);
	FILE_IS("rewrite.h", FILE_REWRITE_H);
	FILE_IS("lb_packet.h", FILE_LB_PACKET_H);
	FILE_IS("lb_direct.h", FILE_LB_DIRECT_H);
	FILE_IS("ct.h", FILE_CT_H);
	FILE_IS("lxc.bpf.c", FILE_LXC_BPF_C);
	FILE_IS("forward.h", FILE_FORWARD_H);
	FILE_IS("nat.h", FILE_NAT_H);
	FILE_IS("nat_family.h", FILE_NAT_FAMILY_H);
	FILE_IS("dsr.h", FILE_DSR_H);
	FILE_IS("ipip.h", FILE_IPIP_H);
	FILE_IS("host.bpf.c", FILE_HOST_BPF_C);
	FILE_IS("xdp.bpf.c", FILE_XDP_BPF_C);
	FILE_IS("nodeport.h", FILE_NODEPORT_H);
	FILE_IS("nodeport_dsr.h", FILE_NODEPORT_DSR_H);
	FILE_IS("rewrite_ends.h", FILE_REWRITE_ENDS_H);
	FILE_IS("test.bpf.c", FILE_TEST_BPF_C);
	return FILE_UNKNOWN;
}

#define REFUSAL_LINE_BITS 14
#define REFUSAL_REASON_BITS 8

#define refuse_at(reason, file, line) \
	(-(((__s32)(file) << (REFUSAL_LINE_BITS + REFUSAL_REASON_BITS)) | \
	   (((line) & ((1 << REFUSAL_LINE_BITS) - 1)) << REFUSAL_REASON_BITS) | -(reason)))

#define REFUSE(reason) refuse_at(reason, file_number(__FILE_NAME__), __LINE__)

static __always_inline __s16 refusal_reason(__s32 refusal)
{
	return -(-refusal & ((1 << REFUSAL_REASON_BITS) - 1));
}

static __always_inline __u16 refusal_line(__s32 refusal)
{
	return (-refusal >> REFUSAL_REASON_BITS) & ((1 << REFUSAL_LINE_BITS) - 1);
}

static __always_inline __u8 refusal_file(__s32 refusal)
{
	return -refusal >> (REFUSAL_LINE_BITS + REFUSAL_REASON_BITS);
}

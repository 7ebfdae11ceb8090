/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What a node sets before load for all programs that see packets; the verifier removes what is off. */
#include "common.h"
#include "lb_types.h"

/* Algorithm of services that name none, LB_ALG_RANDOM or LB_ALG_MAGLEV. */
const volatile __u32 lb_algorithm = LB_ALG_RANDOM;

/* Positions of every Maglev table. */
const volatile __u32 lb_maglev_size = 16381;

/* Seeds of the hash that gives a flow its position, by family. */
const volatile __u32 lb_hash4_seed = 0;
const volatile __u32 lb_hash6_seed = 0;

/* Whether a refused client of a service gets an ICMP answer, and how many of them a CPU may send. */
const volatile bool lb_reject = true;
const volatile __u32 icmp_rate_per_s = 1000;

/* Source that a workload sees when it reaches itself through a service, network order: 169.254.42.1
 * and fd63:696c:6961::1. Neither is on a link of the workload, so answers go to its gateway. */
const volatile __be32 loopback4 = bpf_htonl(0xa9fe2a01);
const volatile __be32 loopback6[4] = { bpf_htonl(0xfd63696c), bpf_htonl(0x69610000), 0, bpf_htonl(1) };

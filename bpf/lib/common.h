/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What every entry program includes first. Only kernel UAPI headers are used: the programs read
 * their context and their own maps, never a kernel struct, so they need no vmlinux.h. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Headers of the C library do not compile for BPF; these numbers are the kernel's ABI. */
#define CILIA_ENOENT 2
#define CILIA_ENOMEM 12
#define CILIA_EADDRINUSE 98
#define CILIA_ECONNREFUSED 111
#define CILIA_AF_INET 2
#define CILIA_AF_INET6 10

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

#define NSEC_PER_S 1000000000ULL

/* Define name4 and name6, the copies of an inline function whose last argument is the constant v6. They are
 * not static: the verifier checks each copy once, for any arguments, and not once for each way to it. It
 * assumes that a pointer may be NULL: `given` says that none is, `missing` is the value if one is. */
#define PER_FAMILY_OF(name, missing, given, parameters, ...)				\
	__noinline int name##4 parameters						\
	{										\
		return (given) ? name(__VA_ARGS__, false) : (missing);			\
	}										\
	__noinline int name##6 parameters						\
	{										\
		return (given) ? name(__VA_ARGS__, true) : (missing);			\
	}

/* For functions of a packet, and of a packet and something with it. */
#define PER_FAMILY(name, missing)							\
	PER_FAMILY_OF(name, missing, packet, (ctx_t *ctx, struct packet *packet), ctx, packet)
#define PER_FAMILY_WITH(name, type, missing)						\
	PER_FAMILY_OF(name, missing, packet && with,					\
		      (ctx_t *ctx, struct packet *packet, type *with), ctx, packet, with)

/* Call the copy of the family. */
#define BY_FAMILY(v6, name, ...) ((v6) ? name##6(__VA_ARGS__) : name##4(__VA_ARGS__))

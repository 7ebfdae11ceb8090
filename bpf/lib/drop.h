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
#define FILE_IS(number, value, name) if (!__builtin_strcmp(file, name)) return number;
static __always_inline __u8 file_number(const char *file)
{
	FILES(FILE_IS)
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

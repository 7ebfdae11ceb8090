/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Why the datapath refuses something: negative and dense, in the order in which they were introduced.
 * A number is never given to another reason, because readers of another build see it too. */
#define DROP_INVALID_PACKET -1
#define DROP_NO_BACKEND -2
#define DROP_MAP_FULL -3
#define DROP_NO_SERVICE -4	/* a service's address, and no port of it */

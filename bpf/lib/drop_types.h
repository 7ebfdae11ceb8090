/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Why the datapath refuses something: negative and dense, in the order in which they were introduced.
 * A number is never given to another reason, because readers of another build see it too. */
#define DROP_INVALID_PACKET -1
#define DROP_NO_BACKEND -2
#define DROP_MAP_FULL -3
#define DROP_NO_SERVICE -4	/* a service's address, and no port of it */
#define DROP_NAT_NO_MAPPING -5	/* every port of the node is taken for this destination */
#define DROP_NO_ROUTE -6	/* blackhole, unreachable or prohibit */
#define DROP_FRAG_NEEDED -7
#define DROP_TTL_EXCEEDED -8
#define DROP_NO_SOURCE -9	/* the device to the backend has no address of the family */

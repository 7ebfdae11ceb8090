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
#define DROP_FRAG_NOT_FOUND -10	/* the first fragment of this datagram was not seen */
#define DROP_INVALID_EXTHDR -11	/* too many IPv6 extension headers */
#define DROP_CSUM_L3 -12	/* checksum of the IP header cannot be corrected */
#define DROP_CSUM_L4 -13	/* checksum of the transport cannot be corrected */
#define DROP_WRITE_ERROR -14	/* bytes of the packet cannot be changed */
#define DROP_CT_CREATE_FAILED -15	/* no entry of connection tracking could be made */
#define DROP_CT_COLLISION -16	/* another frontend has a connection of these addresses and ports */
#define DROP_NOT_IN_SRC_RANGE -17	/* the source ranges of the service keep this client out */
#define DROP_IS_CLUSTER_IP -18	/* a service that is served inside the cluster only */
#define DROP_LOOPBACK_ONLY -19	/* a host port that is served on the loopback address only */
#define DROP_UNKNOWN_FRONTEND -20	/* direct return: the packet names a frontend that no node has */
#define DROP_NOT_FROM_NODE -21	/* direct return: the sender is no node of the cluster */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Why the datapath refuses something: reason(name, number, number in flows, text where the name is not
 * enough).
 *
 * Our numbers are negative and dense, in the order in which they were introduced. A number is never given
 * to another reason, because readers of another build see it too. The number in flows is the nearest
 * DropReason of Cilium's flow.proto (130-207), which the clients of flows know; several of ours may share
 * one.
 */
#define DROP_REASONS(reason) \
	reason(DROP_INVALID_PACKET, -1, 134, "") \
	reason(DROP_NO_BACKEND, -2, 158, "") \
	reason(DROP_MAP_FULL, -3, 155, "") \
	reason(DROP_NO_SERVICE, -4, 158, "a service's address, and no port of it") \
	reason(DROP_NAT_NO_MAPPING, -5, 167, "every port of the node is taken for this destination") \
	reason(DROP_NO_ROUTE, -6, 169, "blackhole, unreachable or prohibit") \
	reason(DROP_FRAG_NEEDED, -7, 136, "") \
	reason(DROP_TTL_EXCEEDED, -8, 196, "") \
	reason(DROP_NO_SOURCE, -9, 167, "the device to the destination has no address of the family") \
	reason(DROP_FRAG_NOT_FOUND, -10, 175, "the first fragment of this datagram was not seen") \
	reason(DROP_INVALID_EXTHDR, -11, 156, "too many IPv6 extension headers") \
	reason(DROP_CSUM_L3, -12, 153, "checksum of the IP header cannot be corrected") \
	reason(DROP_CSUM_L4, -13, 154, "checksum of the transport cannot be corrected") \
	reason(DROP_WRITE_ERROR, -14, 141, "bytes of the packet cannot be changed") \
	reason(DROP_CT_CREATE_FAILED, -15, 155, "no entry of connection tracking could be made") \
	reason(DROP_CT_COLLISION, -16, 155, "another frontend has a connection of these addresses and ports") \
	reason(DROP_NOT_IN_SRC_RANGE, -17, 177, "the source ranges of the service keep this client out") \
	reason(DROP_IS_CLUSTER_IP, -18, 174, "a service that is served inside the cluster only") \
	reason(DROP_LOOPBACK_ONLY, -19, 158, "a host port that is served on the loopback address only") \
	reason(DROP_UNKNOWN_FRONTEND, -20, 158, "direct return: the packet names a frontend that no node has") \
	reason(DROP_NOT_FROM_NODE, -21, 172, "direct return: the sender is no node of the cluster") \
	reason(DROP_INVALID_SOURCE, -22, 132, "the source is no address of the endpoint") \
	reason(DROP_INVALID_SOURCE_MAC, -23, 130, "the Ethernet source is not the endpoint's device") \
	reason(DROP_UNKNOWN_L3, -24, 139, "neither IP nor ARP") \
	reason(DROP_ENDPOINT_NOT_READY, -25, 203, "the device belongs to no endpoint") \
	reason(DROP_NODE_LOOPBACK, -26, 169, "a loopback address of the node") \
	reason(DROP_FORBIDDEN_ICMP6, -27, 176, "router advertisement or redirect of an endpoint") \
	reason(DROP_NAT_PROTOCOL, -28, 168, "of an endpoint to the world, without a port to translate") \
	reason(DROP_POLICY_DENIED, -29, 133, "")

#define DROP_NUMBER(name, number, ...) name = number,
enum drop_reason {
	DROP_REASONS(DROP_NUMBER)
};

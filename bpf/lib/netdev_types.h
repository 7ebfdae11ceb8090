/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* cilia_netdev: the devices of the node that lead to clients and to other nodes; see lb_types.h for what
 * this file may contain. A backend that is reached by any other device is on this node.
 */
struct netdev_key {
	__u32 ifindex;
};

struct netdev {
	__be32 address6[4];	/* sources of what is translated on its way out, 0 = none */
	__be32 address4;
	__u32 pad;
};

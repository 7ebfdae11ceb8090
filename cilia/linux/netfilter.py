# SPDX-License-Identifier: Apache-2.0
"""Connections of this network namespace whose destination netfilter translates: ctnetlink.

They are what another proxy of Services, with rules of iptables or nftables, still has.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error

from cilia.linux.errors import NetlinkError, untangle

__all__ = ["translated_tcp_ports"]

#: There once connections are tracked here; there is no module without it.
COUNT: Final = Path("/proc/thread-self/net/stat/nf_conntrack")
#: ``IPS_DST_NAT`` of linux/netfilter/nf_conntrack_common.h; the kernel lists these alone.
DST_NAT: Final = 1 << 5


def translated_tcp_ports() -> set[int]:
    """The ports that clients dialled, of TCP connections that go elsewhere.

    Raises: NetlinkError when connections are tracked and cannot be listed.
    """
    if not COUNT.exists():
        return set()
    return {
        port
        for family in (socket.AF_INET, socket.AF_INET6)
        for port in _ports(family)
        if port is not None
    }


def _ports(family: int) -> list[int | None]:
    try:
        with NFCTSocket(nfgen_family=family) as conntrack:
            rows = list(conntrack.dump(status=DST_NAT, status_mask=DST_NAT))
    except Pyroute2Error as error:
        untangle(error)
        raise NetlinkError(error.code, f"tracked connections: {error}") from None
    return [_dialled_tcp_port(row) for row in rows]


def _dialled_tcp_port(row: Any) -> int | None:
    protocol = row.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO")
    if protocol.get_attr("CTA_PROTO_NUM") != socket.IPPROTO_TCP:
        return None
    return int(protocol.get_attr("CTA_PROTO_DST_PORT"))

# SPDX-License-Identifier: Apache-2.0
"""The addresses of Services that kube-proxy serves in this network namespace.

Each of its modes leaves them at a place of its own: nftables' map ``service-ips``, the chain
``KUBE-SERVICES`` that iptables keeps in nftables, the addresses of the device ``kube-ipvs0``. Rules
in iptables' own tables (``iptables-legacy``) are not seen.

Source: the documents of kube-proxy's modes; the kernel's uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from pyroute2 import NFTSocket
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_GETRULE,
    NFT_MSG_GETSETELEM,
    nft_rule_msg,
    nft_set_elem_list_msg,
)

from cilia.linux.errors import NetlinkError, untangle
from cilia.linux.netlink import Netlink

__all__ = ["ProxyRules", "kube_proxy_rules"]

IPVS_DEVICE: Final = "kube-ipvs0"
SCOPE_GLOBAL: Final = 0  # RT_SCOPE_UNIVERSE: not the link-local one that each device has
#: By family: its name for nft, where a header has the destination, how many bytes that is.
FAMILIES: Final[dict[int, tuple[str, int, int]]] = {
    socket.AF_INET: ("ip", 16, 4),
    socket.AF_INET6: ("ip6", 24, 16),
}
#: What the kernel says where nothing of the name is, or where it has no nftables at all.
ABSENT: Final = (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)


class ProxyRules(NamedTuple):
    """What one mode of kube-proxy has in one family."""

    mode: str
    #: What to look at: a table, a chain, a device.
    place: str
    #: 4 or 16 bytes in network order.
    addresses: frozenset[bytes]


def kube_proxy_rules(netlink: Netlink) -> list[ProxyRules]:
    """Those that are there. Blocking, 20 µs an address.

    Raises: NetlinkError when the kernel refuses to list them.
    """
    found = [rules for family in FAMILIES for rules in (_nftables(family), _iptables(family))]
    return [rules for rules in (*found, _ipvs(netlink)) if rules.addresses]


def _nftables(family: int) -> ProxyRules:
    name, _, length = FAMILIES[family]
    request = nft_set_elem_list_msg()
    request["nfgen_family"] = family
    request["attrs"] = [
        ("NFTA_SET_ELEM_LIST_TABLE", "kube-proxy"),
        ("NFTA_SET_ELEM_LIST_SET", "service-ips"),
    ]
    keys = (
        element.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE")
        for message in _listed(family, request, NFT_MSG_GETSETELEM)
        for element in message.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ()
    )
    # Address, protocol, port: the parts of a key begin at multiples of four bytes.
    addresses = frozenset(key[:length] for key in keys)
    return ProxyRules("nftables", f"table {name} kube-proxy", addresses)


def _iptables(family: int) -> ProxyRules:
    name, _, _ = FAMILIES[family]
    request = nft_rule_msg()
    request["nfgen_family"] = family
    request["attrs"] = [("NFTA_RULE_TABLE", "nat"), ("NFTA_RULE_CHAIN", "KUBE-SERVICES")]
    addresses = frozenset(
        address
        for message in _listed(family, request, NFT_MSG_GETRULE)
        for address in _destinations(family, message.get_attr("NFTA_RULE_EXPRESSIONS") or ())
    )
    return ProxyRules("iptables", f"chain {name} nat KUBE-SERVICES", addresses)


def _destinations(family: int, expressions: Any) -> Iterator[bytes]:
    """What a rule compares the destination with: the load of the field, then the comparison."""
    _, offset, length = FAMILIES[family]
    loaded = False
    for expression in expressions:
        kind, data = expression.get_attr("NFTA_EXPR_NAME"), expression.get_attr("NFTA_EXPR_DATA")
        if loaded and kind == "cmp":
            yield data.get_attr("NFTA_CMP_DATA").get_attr("NFTA_DATA_VALUE")
        loaded = kind == "payload" and (
            data.get_attr("NFTA_PAYLOAD_BASE"),
            data.get_attr("NFTA_PAYLOAD_OFFSET"),
            data.get_attr("NFTA_PAYLOAD_LEN"),
        ) == ("NFT_PAYLOAD_NETWORK_HEADER", offset, length)


def _listed(family: int, request: Any, kind: int) -> list[Any]:
    """Raises: NetlinkError."""
    try:
        with NFTSocket(nfgen_family=family) as tables:
            return list(tables.request_get(request, kind))
    except Pyroute2Error as error:
        untangle(error)
        if error.code in ABSENT:
            return []
        raise NetlinkError(error.code, f"rules of nftables: {error}") from None


def _ipvs(netlink: Netlink) -> ProxyRules:
    device = netlink.link(IPVS_DEVICE)
    rows = netlink.addresses() if device else []
    served = (row for row in rows if device and row.index == device.index)
    addresses = frozenset(row.address for row in served if row.scope == SCOPE_GLOBAL)
    return ProxyRules("ipvs", f"device {IPVS_DEVICE}", addresses)

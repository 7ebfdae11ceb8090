# SPDX-License-Identifier: Apache-2.0
"""Which addresses a node port stands for.

A node or host port frontend has the surrogate address `0.0.0.0` or `::`; the datapath looks up
real addresses, so each address of this node that answers for node ports gets an entry of its own.
"""

from collections.abc import Callable

from bpf.maps.lb_numbers import FrontendType
from reconcilers.loadbalancer.frontend_config import FrontendConfig
from reconcilers.operations import Refusal
from statedb import ReadTxn, Table
from tables.addressing import IP, L3n4Addr
from tables.loadbalancer.frontends import Frontend
from tables.node.node_addresses import NodeAddress

_ANY_V4 = IP.parse("0.0.0.0")
_ANY_V6 = IP.parse("::")
_OWNERS = (FrontendType.LOAD_BALANCER, FrontendType.EXTERNAL_IPS)
_PORT = {FrontendType.NODE_PORT: "node port", FrontendType.HOST_PORT: "host port"}


class NodePortAddresses:
    """The node's addresses as of the last `refresh`; a cache of the table `node-addresses`."""

    def __init__(self, table: Table[NodeAddress], config: FrontendConfig) -> None:
        self._table = table
        self._config = config
        self._revision = -1
        self._node_port: list[IP] = []

    def refresh(self, txn: ReadTxn) -> None:
        revision = self._table.revision(txn)
        if revision != self._revision:
            self._node_port = sorted({r.address for r in self._table.all(txn) if r.node_port})
            self._revision = revision

    def expand(
        self, owner_of: Callable[[L3n4Addr], Frontend | None], fe: Frontend
    ) -> tuple[L3n4Addr, ...]:
        """The addresses that the surrogate frontend `fe` stands for, in address order.

        An address that a load-balancer or external-IP frontend has for itself is left to it; in the
        range of node ports the node port wins.
        """
        surrogate = fe.address
        is_ipv6 = surrogate.is_ipv6
        addresses = [surrogate.with_ip(ip) for ip in self._node_port if ip.is_ipv6 is is_ipv6]
        if self._in_range(surrogate):
            return tuple(addresses)
        return tuple(addr for addr in addresses if not _is_taken(owner_of(addr)))

    def could_be_node_port(self, fe: Frontend) -> bool:
        """True for a row whose own address may turn out to be another row's node or host port."""
        if fe.type is FrontendType.LOCAL_REDIRECT:
            return True
        return fe.type in _OWNERS and self._in_range(fe.address)

    def node_port_at(
        self, owner_of: Callable[[L3n4Addr], Frontend | None], fe: Frontend
    ) -> Frontend | None:
        """Return the node port that has the address of `fe`, a row with an address of its own; for
        a redirect policy a host port too.
        """
        if not self.could_be_node_port(fe) or fe.address.ip not in self._node_port:
            return None
        owner = owner_of(surrogate_of(fe.address))
        if owner is None or owner.type is FrontendType.NODE_PORT:
            return owner
        return owner if fe.type is FrontendType.LOCAL_REDIRECT else None

    def refusal(
        self, owner_of: Callable[[L3n4Addr], Frontend | None], fe: Frontend
    ) -> Refusal | None:
        """Return why `fe` is not served: its address is a node port of another Service."""
        owner = self.node_port_at(owner_of, fe)
        if owner is None or owner.service_name == fe.service_name:
            return None
        return Refusal(
            f"{fe.address} is an address of this node and {_PORT[owner.type]} {fe.address.port} of"
            f" Service {owner.service_name}, which keeps it"
        )

    def _in_range(self, addr: L3n4Addr) -> bool:
        return self._config.node_port_min <= addr.port <= self._config.node_port_max


def _is_taken(owner: Frontend | None) -> bool:
    return owner is not None and owner.type in _OWNERS


def surrogate_of(addr: L3n4Addr) -> L3n4Addr:
    """The surrogate address of the same family, port, protocol and scope."""
    return addr.with_ip(_ANY_V6 if addr.is_ipv6 else _ANY_V4)

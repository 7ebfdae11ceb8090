# SPDX-License-Identifier: Apache-2.0
"""The place of our plugin in a runtime's list, and what one before it made for a container."""

from __future__ import annotations

from typing import NamedTuple

from cilia.endpoints import chained, links
from cilia.endpoints.cni.errors import CNIError, Code
from cilia.endpoints.cni.requests import Request
from cilia.endpoints.cni.results import Result
from cilia.endpoints.links import Pair
from cilia.linux.netlink import Netlink
from tables.addressing import IP

__all__ = ["Chaining", "Given"]


class Given(NamedTuple):
    """What the other plugin made: one address of each family at most."""

    pair: Pair
    ipv4: IP | None
    ipv6: IP | None


class Chaining:
    def __init__(self, netlink: Netlink, families: frozenset[bool] | None) -> None:
        """`netlink` is that of the node. `families`: of the other plugin's addresses those that
        count, True for IPv6; None: our plugin is the first one.
        """
        self._netlink = netlink
        self._families = families

    @property
    def is_on(self) -> bool:
        return self._families is not None

    def check_place(self, request: Request) -> None:
        """Raises: CNIError if our plugin has another place in the list than the options say."""
        if self._families is None and request.prev_result is not None:
            raise CNIError(
                Code.INVALID_CONFIG,
                "cilia-cni stands behind another plugin in the list: it must be the first one, or"
                " start the agent with --cni-chaining-mode=generic-veth",
            )
        if self._families is not None and request.prev_result is None:
            raise CNIError(
                Code.INVALID_CONFIG,
                "cilia-cni is the first plugin in the list: with --cni-chaining-mode it must stand"
                " behind the one that makes the devices",
            )

    def addresses(self, result: Result) -> tuple[IP | None, IP | None]:
        """Return those of IPv4 and of IPv6 that count."""
        return chained.addresses_of(result, self._families or frozenset())

    def given(self, request: Request, result: Result) -> Given:
        """Return what a container has from the other plugin. Blocking. Raises: CNIError."""
        assert request.netns_fd is not None
        ipv4, ipv6 = self.addresses(result)
        if ipv4 is None and ipv6 is None:
            raise CNIError(
                Code.INVALID_CONFIG, "the plugin before cilia-cni gave no address: see its ipam"
            )
        try:
            with links.open_netns(request.netns_fd) as netns:
                pair = chained.find_pair(self._netlink, netns, request.ifname)
        except OSError as error:
            raise CNIError(
                Code.IO_FAILURE, f"the other plugin's devices cannot be used: {error}"
            ) from error
        return Given(pair, ipv4, ipv6)

# SPDX-License-Identifier: Apache-2.0
"""The network around the quickstart: two namespaces with a veth each, and two guard routes.

    host ── cqs1 10.202.0.1/30 ═══ eth0 10.202.0.2/30   namespace cilia-quickstart-1: backend-1
         └─ cqs2 10.202.0.5/30 ═══ eth0 10.202.0.6/30   namespace cilia-quickstart-2: backend-2

The `unreachable` routes for the service and the pod range come first and go last: a packet to one
of these addresses that was not translated ends here and never leaves the machine. All names derive
from one instance name, so what a killed run left is found by its name, without a journal.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cilia.linux.netns import NetNS

INSTANCE = "cilia-quickstart"
SERVICE_RANGE = IPv4Network("10.201.0.0/16")
POD_RANGE = IPv4Network("10.202.0.0/16")
PROTOCOL = 0xC1  # rtm_protocol of the guard routes: how ours are told from others'
RTN_UNREACHABLE = 7


class StageError(Exception):
    """The machine's own network is in the way; the sentence says where."""


@dataclass(frozen=True)
class Place:
    """One backend's namespace and its link to the host."""

    number: int

    @property
    def name(self) -> str:
        return f"backend-{self.number}"

    @property
    def namespace(self) -> str:
        return f"{INSTANCE}-{self.number}"

    @property
    def link(self) -> str:
        return f"cqs{self.number}"

    @property
    def host(self) -> IPv4Interface:
        return IPv4Interface(f"10.202.0.{4 * self.number - 3}/30")

    @property
    def pod(self) -> IPv4Interface:
        return IPv4Interface(f"10.202.0.{4 * self.number - 2}/30")


PLACES = (Place(1), Place(2))
GUARDS = (SERVICE_RANGE, POD_RANGE)


def plan() -> list[str]:
    """What `make` will make, a line each, before it does."""
    return [
        *(f"route unreachable {guard}" for guard in GUARDS),
        *(f"network namespace {p.namespace} with {p.pod}" for p in PLACES),
        *(f"link {p.link} with {p.host}" for p in PLACES),
        f"agent instance {INSTANCE}: state in /run/{INSTANCE}, pins in its own bpffs directory",
    ]


def check() -> None:
    """Refuse when another route or address of this machine uses our ranges.

    Raises:
        StageError: names the route that is in the way.
    """
    with IPRoute() as ipr:
        for route in ipr.get_routes(family=2):
            destination = route.get_attr("RTA_DST")
            if destination is None or route["proto"] == PROTOCOL:
                continue
            network = IPv4Network(f"{destination}/{route['dst_len']}")
            for guard in GUARDS:
                if network.overlaps(guard) and network.prefixlen:
                    raise StageError(
                        f"this machine already routes {network}, and the quickstart needs {guard}:"
                        " run it where that range is free"
                    )


def leftovers() -> list[str]:
    """What an earlier run left, a line each."""
    with IPRoute() as ipr:
        found = [f"route unreachable {guard}" for guard in GUARDS if _guard_routes(ipr, guard)]
        found += [f"link {p.link}" for p in PLACES if ipr.link_lookup(ifname=p.link)]
    present = set(NetNS.names())
    return found + [f"network namespace {p.namespace}" for p in PLACES if p.namespace in present]


def make() -> Iterator[str]:
    """Make it all, yielding each thing after it stands."""
    with IPRoute() as ipr:
        for guard in GUARDS:
            ipr.route("add", dst=str(guard), type="unreachable", proto=PROTOCOL)
            yield f"route unreachable {guard}"
        for place in PLACES:
            _make_place(ipr, place)
            yield f"network namespace {place.namespace}"


def _make_place(ipr: IPRoute, place: Place) -> None:
    with NetNS.create(place.namespace) as namespace:
        peer = {"ifname": "eth0", "net_ns_fd": namespace.fd}
        ipr.link("add", ifname=place.link, kind="veth", peer=peer)
        (index,) = ipr.link_lookup(ifname=place.link)
        ipr.link("set", index=index, IFLA_IFALIAS=INSTANCE)
        ipr.addr("add", index=index, address=str(place.host.ip), prefixlen=30)
        ipr.link("set", index=index, state="up")
        namespace.run(lambda: _bring_up_inside(place))


def _bring_up_inside(place: Place) -> None:
    """Runs in a thread in the namespace (pyroute2's own NetNS would fork this process)."""
    with IPRoute() as ipr:
        for name in ("lo", "eth0"):
            (index,) = ipr.link_lookup(ifname=name)
            if name == "eth0":
                ipr.addr("add", index=index, address=str(place.pod.ip), prefixlen=30)
            ipr.link("set", index=index, state="up")


def undo() -> None:
    """Remove what is there of it; idempotent. The guards go last."""
    with IPRoute() as ipr:
        for place in PLACES:
            for index in ipr.link_lookup(ifname=place.link):
                ipr.link("del", index=index)
            NetNS.remove(place.namespace)
        for guard in GUARDS:
            for _ in range(_guard_routes(ipr, guard)):
                _delete_guard(ipr, guard)


def _guard_routes(ipr: IPRoute, guard: IPv4Network) -> int:
    return sum(
        1
        for route in ipr.get_routes(family=2, proto=PROTOCOL)
        if route.get_attr("RTA_DST") == str(guard.network_address)
        and route["type"] == RTN_UNREACHABLE
    )


def _delete_guard(ipr: IPRoute, guard: IPv4Network) -> None:
    try:
        ipr.route("del", dst=str(guard), type="unreachable", proto=PROTOCOL)
    except NetlinkError as error:
        if error.code != errno.ESRCH:
            raise

# SPDX-License-Identifier: Apache-2.0
"""`cilia service connections`: who still talks to which backend, which is what a drain waits for.

Read from the kernel, so it works while no agent runs; names of Services, and what a backend is to
each of them, come from the agent's tables where it answers. Counted are the sockets of this node
and of its pods that were translated when they connected; connections that come in from outside are
in the conntrack table.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from bpf.maps.lb import LBMaps, decode_backend
from bpf.maps.lb_numbers import EntryState
from bpf.maps.text import PROTOCOL_NAMES
from cilia.linux.errors import NetlinkError, SocketsUnlisted
from cilia.linux.namespaces import DIRECTORIES, network_namespaces
from cilia.loadbalancer.cli.service import STATES
from cilia.loadbalancer.connections.translated_sockets import PROTOCOLS, Use, count_connections
from cilia.program.output import pinned_lb_maps
from cilia.program.output import show as output_as
from statedb.errors import StateDBError
from statedb.shown.columns import layout
from statedb.web.remote import RemoteDB
from tables.addressing import L3n4Addr

_HEADINGS = ["Frontend", "Service", "Backend", "State", "Connections"]
REMOVED = "removed"


class Services(NamedTuple):
    """What the agent knows."""

    #: Frontend -> Service.
    names: dict[str, str]
    #: (Service, backend) -> state; an address may be draining in one Service alone.
    states: dict[tuple[str, str], str]


class Line(msgspec.Struct, frozen=True):
    """What is printed."""

    frontend: str
    service: str
    backend: str
    state: str
    connections: int


def show(
    directory: Path, socket: str, netns: tuple[Path, ...], draining: bool, output: str
) -> None:
    """Raises: ClickException."""
    lines = _sorted(directory, socket, netns)
    if draining:
        lines = [line for line in lines if line.state not in ("active", "quarantined")]
    cells = ([str(value) for value in msgspec.structs.astuple(line)] for line in lines)
    output_as(msgspec.to_builtins(lines), output, layout([_HEADINGS, *cells]))


def _sorted(directory: Path, socket: str, netns: tuple[Path, ...]) -> list[Line]:
    with pinned_lb_maps(directory) as maps:
        try:
            counted = count_connections(maps, network_namespaces(netns or DIRECTORIES))
            states = dict(_states(maps))
        except SocketsUnlisted as error:
            raise click.ClickException(str(error)) from None
        except (NetlinkError, PermissionError) as error:
            raise click.ClickException(f"{error}: run this as root") from None
    services = _services(socket)
    lines = [_line(use, number, states, services) for use, number in counted.items()]
    return sorted(lines, key=lambda line: (line.frontend, line.backend))


def _line(use: Use, number: int, states: dict[str, str], services: Services | None) -> Line:
    frontend, backend = _text(use.frontend, use.protocol), _text(use.backend, use.protocol)
    if services is None:
        return Line(frontend, "", backend, states.get(backend, REMOVED), number)
    zero = _text((bytes(len(use.frontend[0])), use.frontend[1]), use.protocol)
    name = services.names.get(frontend) or services.names.get(zero, "")
    return Line(frontend, name, backend, services.states.get((name, backend), REMOVED), number)


def _states(maps: LBMaps) -> Iterator[tuple[str, str]]:
    """Backend -> its state in the datapath."""
    for family in (maps.v4, maps.v6):
        for _, raw in family.backend.items():  # noqa: PERF102  a raw map is no dict
            be = decode_backend(raw)
            if be.proto in PROTOCOLS:
                state = EntryState(be.state).name.lower()
                yield _text((be.address, be.port), be.proto), state


def _services(socket: str) -> Services | None:
    """None while no agent answers."""
    db = RemoteDB(socket)
    try:
        txn = db.read_txn()
        frontends: list[dict[str, Any]] = list(db.table("frontends").all(txn))
        backends: list[dict[str, Any]] = list(db.table("backends").all(txn))
    except StateDBError:
        return None
    return Services(
        {row["Address"].removesuffix("/i"): row["ServiceName"] for row in frontends},
        {(row["ServiceName"], row["Address"]): STATES[row["State"]] for row in backends},
    )


def _text(place: tuple[bytes, int], protocol: int) -> str:
    ip = str(ipaddress.ip_address(place[0]))
    return str(L3n4Addr.of(ip, place[1], PROTOCOL_NAMES[protocol]))

# SPDX-License-Identifier: Apache-2.0
"""The replacement of kube-proxy, turned on and off at work; `/replacement` on the agent's socket.

::

    take_over ──(netfilter has none of our Services' connections)──> serve
        ^                                                               |
        +──────────── on ──────────── hand_back <───────── off ─────────+

In every state the maps are kept up to date and known connections go on, so nothing is lost by a
turn. The state itself is in the kernel: it outlives the agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from bpf.maps import ct, nat
from bpf.maps.switch import SwitchState
from cilia.datapath.conntrack import ConntrackMaps
from cilia.datapath.opening import Datapath
from cilia.linux.errors import NetlinkError, SocketsUnlisted
from cilia.linux.namespaces import DIRECTORIES, network_namespaces
from cilia.linux.netfilter import translated_tcp_ports
from cilia.loadbalancer.connections.translated_sockets import count_connections
from cilia.program.serving import BadBody, json_object
from statedb import DB, Table
from tables.loadbalancer.frontends import Frontend

__all__ = ["Replacement", "replacement_routes"]

#: A take-over lasts this long at least: until then all devices have their programs.
INTERVAL_S: Final = 30.0

log = structlog.get_logger("agent")


class Replacement:
    """One task calls `run`; the rest may be called from any thread."""

    def __init__(
        self,
        datapath: Datapath,
        frontends: Table[Frontend],
        db: DB,
        others: Callable[[], set[int]] = translated_tcp_ports,
    ) -> None:
        """`others`: ports of the TCP connections that another proxy has."""
        self._datapath, self._frontends, self._db, self._others = datapath, frontends, db, others

    @property
    def state(self) -> SwitchState:
        return self._datapath.switch.state

    def turn(self, on: bool) -> None:
        """Idempotent; the next connection that begins finds it."""
        if on and self.state is SwitchState.HAND_BACK:
            self._datapath.switch.state = SwitchState.TAKE_OVER
        elif not on:
            self._datapath.switch.state = SwitchState.HAND_BACK
        log.info("replacement", on=on, state=self.state.name.lower())

    def left(self) -> dict[str, int | None]:
        """How many connections are translated here: of sockets, and of packets. Blocking.

        None for sockets if the kernel does not list them.
        """
        sockets: int | None
        try:
            namespaces = network_namespaces(DIRECTORIES)
            sockets = count_connections(self._datapath.maps, namespaces).total()
        except SocketsUnlisted:
            sockets = None
        flows = self._datapath.flows
        return {
            "sockets": sockets,
            "packets": 0 if flows is None else count_flows(flows.conntrack, int(time.monotonic())),
        }

    async def run(self) -> None:
        """End a take-over when nobody else has connections of our Services."""
        while True:
            await anyio.sleep(INTERVAL_S)  # netfilter announces ends to those that read all of them
            if self.state is SwitchState.TAKE_OVER:
                await anyio.to_thread.run_sync(self.finish)

    def finish(self) -> None:
        """Look once."""
        try:
            others = self._others()
        except NetlinkError as error:
            log.warning("connections of netfilter are unknown and left to it", error=str(error))
            return
        frontends = self._frontends.all(self._db.read_txn())
        if others.isdisjoint(fe.address.port for fe in frontends):
            self._datapath.switch.state = SwitchState.SERVE
            log.info("replacement", on=True, state=self.state.name.lower())


def count_flows(conntrack: ConntrackMaps, now_s: int) -> int:
    """Connections of clients, those that another node sent here with their frontend, and the
    node's own that got another port, because a client's had theirs. Who kept the port goes on
    without us.
    """
    clients = sum(
        is_of_client(key, entry) and not ct.is_over(entry, now_s)
        for raw in conntrack.connections.values()
        for key, entry in ct.connections(raw)
    )
    others = sum(
        key.direction == nat.NatDirection.OUT  # clients' flows have none
        and (value.address, value.port) != (key.source, key.source_port)
        and not value.flags & nat.NatFlag.CLOSING
        and value.expires_s >= now_s
        for raw in conntrack.translations.values()
        for key, value in nat.translations(raw)
    )
    return clients + others


def is_of_client(key: ct.CtKey, entry: ct.CtEntry) -> bool:
    return key.direction == ct.Direction.SERVICE


def replacement_routes(replacement: Replacement) -> list[BaseRoute]:
    """`GET /replacement`: state and connections left. `PUT`: `{"on": true}` turns it."""

    def show(_: Request) -> Response:
        return JSONResponse({"state": replacement.state.name.lower(), **replacement.left()})

    async def turn(request: Request) -> Response:
        try:
            wanted = await json_object(request)
        except BadBody as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        if not isinstance(wanted.get("on"), bool):
            return JSONResponse({"error": 'want {"on": true} or {"on": false}'}, status_code=400)
        replacement.turn(wanted["on"])
        return JSONResponse({"state": replacement.state.name.lower()})

    return [
        Route("/replacement", show, methods=["GET"]),
        Route("/replacement", turn, methods=["PUT"]),
    ]

# SPDX-License-Identifier: Apache-2.0
"""The ports of `health-check-ports`, opened and answered.

What is answered, and how, is what kube-proxy and cilium answer: JSON with the service and the
number of its endpoints here, 200 if there are any and 503 if not, and the number once more in
`X-Load-Balancing-Endpoint-Weight`. Requests come from load balancers, so the ports are open at
every address of the node; nothing but this answer is ever given.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Final

import h11
import structlog

from statedb import DB, ReadTxn, Table
from tables.addressing import ServiceName
from tables.loadbalancer.health_check_ports import HealthCheckPort

__all__ = ["HealthPortOperations"]

ANY_ADDRESS: Final = ""
# Longest that a client may take with its request, in seconds.
REQUEST_TIMEOUT_S: Final = 5.0
READ_BYTES: Final = 4096
BACKLOG: Final = 128
# Connections at a time, of all ports together: load balancers probe with a few each. The ports are
# open to everybody who reaches the node.
MAX_CONNECTIONS: Final = 256

log = structlog.get_logger("health-ports")


class HealthPortOperations:
    """Operations of `reconcilers.operations`, run in the event loop that answers."""

    def __init__(self, db: DB, ports: Table[HealthCheckPort], address: str = ANY_ADDRESS) -> None:
        """Listens at `address`; by default at all that the node has, of both families."""
        self._db = db
        self._ports = ports
        self._address = address
        self._open: dict[ServiceName, _Port] = {}
        self._connections = _Count()

    def update(self, txn: ReadTxn, revision: int, obj: HealthCheckPort) -> None:
        held = self._open.get(obj.service)
        if held is not None and held.number == obj.port:
            return
        self._close(obj.service)
        listener = _listen(self._address, obj.port)
        self._open[obj.service] = _Port(
            obj.port, listener, lambda: self._answer(obj.service), self._connections
        )

    def delete(self, txn: ReadTxn, revision: int, obj: HealthCheckPort) -> None:
        self._close(obj.service)

    def prune(self, txn: ReadTxn, objects: Iterable[HealthCheckPort]) -> None:
        """Nothing to do: ports are closed with the process that opened them."""

    def _close(self, service: ServiceName) -> None:
        held = self._open.pop(service, None)
        if held is not None:
            held.close()

    def _answer(self, service: ServiceName) -> tuple[int, int, bytes]:
        """Status, number of endpoints and body, as of now."""
        row = self._ports.get(self._db.read_txn(), service)
        count = row.local_endpoints if row is not None else 0
        body = {
            "service": {"namespace": service.namespace, "name": service.name},
            "localEndpoints": count,
        }
        text = json.dumps(body, separators=(",", ":")) + "\n"
        return (200 if count else 503), count, text.encode()


def _listen(address: str, port: int) -> socket.socket:
    """Raises: OSError, naming the port, when it is taken."""
    try:
        if not address:
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
            )
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"health check node port {port}: {error.strerror}") from None


class _Count:
    """Connections that are open, of all ports."""

    def __init__(self) -> None:
        self.open = 0


class _Port:
    """One listening socket and the task that answers on it."""

    def __init__(
        self,
        number: int,
        listener: socket.socket,
        answer: Callable[[], tuple[int, int, bytes]],
        connections: _Count,
    ) -> None:
        self.number = number
        self._connections = connections
        self._answer = answer
        self._listener = listener
        self._task = asyncio.get_running_loop().create_task(self._serve())
        # Not before: while the loop watches the descriptor, its number must not be another's.
        self._task.add_done_callback(lambda _: listener.close())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, sock=self._listener)
        async with server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections.open >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.open += 1
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await _exchange(reader, writer, self._answer)
        except (TimeoutError, OSError, h11.RemoteProtocolError) as error:
            log.debug("a health check without an answer", port=self.number, error=repr(error))
        finally:
            self._connections.open -= 1
            writer.close()

    def close(self) -> None:
        self._task.cancel()


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answer: Callable[[], tuple[int, int, bytes]],
) -> None:
    """One request and its answer, whatever is asked for."""
    connection = h11.Connection(h11.SERVER)
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.ConnectionClosed):
            return
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(READ_BYTES))
    status, count, body = answer()
    headers = [
        ("Content-Type", "application/json"),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Load-Balancing-Endpoint-Weight", str(count)),
        ("Date", formatdate(usegmt=True)),
        ("Content-Length", str(len(body))),
    ]
    reason = "OK" if status == 200 else "Service Unavailable"
    for part in (
        h11.Response(status_code=status, headers=headers, reason=reason),
        h11.Data(data=body),
        h11.EndOfMessage(),
    ):
        writer.write(connection.send(part) or b"")
    await writer.drain()

# SPDX-License-Identifier: Apache-2.0
"""A door into a network namespace: takes connections here, on the loopback, and makes them there.

Usage: relay.py PORT NAMESPACE ADDRESS:PORT. The tests, and a person with kubectl, reach the API
server of a cluster whose network has no connection to the machine's.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from cilia.linux.netns import NetNS


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the other direction sees it as its end
    finally:
        writer.close()


async def relay(listening: socket.socket, host: str, port: int) -> None:
    """Serve for ever; a client is refused as long as nobody listens on the other side."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

    server = await asyncio.start_server(serve, sock=listening)
    await server.serve_forever()


def main() -> None:
    port, namespace, target = sys.argv[1:]
    listening = socket.create_server(("127.0.0.1", int(port)))
    NetNS.named(namespace).enter()
    host, _, remote_port = target.rpartition(":")
    asyncio.run(relay(listening, host, int(remote_port)))


if __name__ == "__main__":
    main()

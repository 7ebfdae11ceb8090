# SPDX-License-Identifier: Apache-2.0
"""A door out of a network namespace: takes connections on its loopback, and makes them on ours.

Usage: python -m tests.kube.door NAMESPACE PORT. An agent under test lives in a namespace without a
way out; the API server of the tests is on the machine's loopback, at the same port.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from cilia.linux.netns import NetNS
from tests.node.relay import relay


def main() -> None:
    name, port = sys.argv[1], int(sys.argv[2])
    with NetNS.named(name) as namespace:
        listening = namespace.run(lambda: socket.create_server(("127.0.0.1", port)))
    print("open", flush=True)
    asyncio.run(relay(listening, "127.0.0.1", port))


if __name__ == "__main__":
    main()

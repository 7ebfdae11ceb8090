# SPDX-License-Identifier: Apache-2.0
"""A process with one of the product's listeners and the customary limit of open files.

Prints the port. Then it answers each line of its input with `ok` if it can open a file, else with
the name of the error.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
import threading

import anyio
from starlette.applications import Starlette

from cilia.program.serving import serve, tcp_socket
from reconcilers.loadbalancer.health_check_ports import HealthPortOperations
from statedb import DB
from tables.addressing import ServiceName
from tables.loadbalancer.health_check_ports import HealthCheckPort, new_health_check_ports_table

#: The soft limit that a process gets on most systems.
OPEN_FILES = 1024


def answer() -> None:
    for _ in sys.stdin:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            print(errno.errorcode[error.errno or 0], flush=True)
        else:
            print("ok", flush=True)
    os._exit(0)


async def serve_metrics() -> None:
    listener = tcp_socket("--prometheus-serve-addr", "127.0.0.1:0")
    print(listener.getsockname()[1], flush=True)
    await serve(Starlette(), listener)


async def serve_health() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    db = DB()
    table = new_health_check_ports_table(db)
    operations = HealthPortOperations(db, table, "127.0.0.1")
    operations.update(db.read_txn(), 1, HealthCheckPort(ServiceName("test/echo"), port, 1))
    print(port, flush=True)
    await anyio.sleep_forever()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
    threading.Thread(target=answer, daemon=True).start()
    anyio.run({"metrics": serve_metrics, "health": serve_health}[sys.argv[1]])


if __name__ == "__main__":
    main()

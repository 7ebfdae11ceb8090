# SPDX-License-Identifier: Apache-2.0
"""A backend of the quickstart: an HTTP server in a network namespace that answers with its name.

Run as `python -m cilia.cli.quickstart.backend NETNS ADDRESS PORT NAME`. It ends when its standard
input does, so that it never outlives the quickstart, however that dies.
"""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cilia.linux.netns import NetNS


def handler_for(name: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = f"{name}\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """The quickstart counts answers itself."""

    return Handler


def serve(namespace: str, address: str, port: int, name: str) -> None:
    NetNS.named(namespace).enter()
    server = ThreadingHTTPServer((address, port), handler_for(name))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

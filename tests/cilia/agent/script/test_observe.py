# SPDX-License-Identifier: Apache-2.0
"""`http/get` writes an answer in one form, whatever its status."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cilia.agent.script.application import SUITE
from cilia.script.runner import run_file

EXPECTED = """\
{status}
Content-Length=6
Content-Type=text/plain
Date=<omitted>
Server=here
X-Lower=1
---
hello
"""


class Handler(BaseHTTPRequestHandler):
    def version_string(self) -> str:
        return "here"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/fine" else 503)
        for name, value in (
            ("Content-Type", "text/plain"),
            ("Content-Length", "6"),
            ("x-lower", "1"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"hello\n")

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.mark.parametrize(
    ("path", "status"), [("fine", "200 OK"), ("busy", "503 Service Unavailable")]
)
def test_answer_is_written_with_sorted_headers(
    server: str, path: str, status: str, tmp_path: Path
) -> None:
    script = tmp_path / "get.txtar"
    expected = EXPECTED.format(status=status)
    script.write_text(
        f"http/get {server}/{path} answer\ncmp answer expected\n-- expected --\n{expected}"
    )
    run_file(script, SUITE, variant="fake", workdir=tmp_path / "work", sink=lambda text: None)

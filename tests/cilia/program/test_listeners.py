# SPDX-License-Identifier: Apache-2.0
"""Connections without a request, more than a process may have files: the rest of it goes on."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from starlette.applications import Starlette

from cilia.api.client import ApiError, request
from cilia.program import serving
from statedb.errors import StateDBError
from statedb.web.remote import RemoteDB
from tests.cilia.program.listener import OPEN_FILES

CONNECTIONS = OPEN_FILES + 100
#: In this time the listener has accepted what it accepts.
WATCHED_S = 1.0
#: A queue that is full drops the first packet; the kernel repeats it only after a second.
CONNECT_S, TRIES = 0.05, 10

Listener = tuple[subprocess.Popen[str], int]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process open the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(params=["metrics", "health"])
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cilia.program.listener", request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        yield process, int(process.stdout.readline())
        process.kill()


def opens_files(process: subprocess.Popen[str]) -> str:
    """Return `ok`, or the error that the process gets when it opens a file."""
    assert process.stdin and process.stdout
    process.stdin.write("?\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def connected(port: int) -> socket.socket | None:
    """Return an idle connection; None if the listener's queue stays full."""
    for _ in range(TRIES):
        with suppress(TimeoutError):
            return socket.create_connection(("127.0.0.1", port), CONNECT_S)
    return None


@pytest.mark.usefixtures("many_files")
def test_files_can_be_opened_while_many_connections_are_idle(listener: Listener) -> None:
    process, port = listener
    assert opens_files(process) == "ok"
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            client = connected(port)
            if client is None:  # the listener takes no more
                break
            stack.enter_context(client)
        end = time.monotonic() + WATCHED_S
        while time.monotonic() < end:
            assert opens_files(process) == "ok"


def test_a_connection_without_a_request_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head may also come in pieces that never end."""
    monkeypatch.setattr(serving, "REQUEST_TIMEOUT_S", 0.1)
    listener = serving.tcp_socket("--test", "127.0.0.1:0")

    async def ended(first: bytes) -> None:
        stream = await anyio.connect_tcp("127.0.0.1", listener.getsockname()[1])
        async with stream:
            if first:
                await stream.send(first)
            with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
                await stream.receive()

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(serving.serve, Starlette(), listener)
            await ended(b"")
            await ended(b"GET / HTTP/1.1\r\nHost: ")
            group.cancel_scope.cancel()

    anyio.run(run)


def test_a_client_that_is_one_too_many_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over and over, since it may be refused before, while or after it sends its request."""
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 2)
    path = str(tmp_path / "sock")
    listener = serving.unix_socket(Path(path))
    said = f"the process {os.getpid()} serves its 2 connections already; try again, or look who"

    def asked() -> None:
        for _ in range(100):
            with pytest.raises(ApiError, match=f"^{said}"):
                request(path, "/status")
            with pytest.raises(StateDBError, match=f"^{said}"):
                RemoteDB(path).summary()

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(serving.serve, Starlette(), listener)
            with ExitStack() as stack:
                for _ in range(2):
                    idle = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                    idle.connect(path)
                await anyio.to_thread.run_sync(asked)
            group.cancel_scope.cancel()

    anyio.run(run)


MALFORMED = [
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    b"GET / HTTP/1.1\r\n\x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
]


def test_what_a_client_sends_is_no_line_of_the_log() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cilia.program.listener", "metrics"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stderr
        port = int(process.stdout.readline())
        for request in MALFORMED:
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                client.settimeout(5)
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
        assert opens_files(process) == "ok"
        process.kill()
        assert process.stderr.read() == ""

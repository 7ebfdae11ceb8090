# SPDX-License-Identifier: Apache-2.0
"""GET over a unix socket, read piece by piece, with what can go wrong as errors of this package."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from statedb import errors
from statedb.errors import BrokenAnswer, Refused, RemoteError, Unreachable

#: A server that is well begins to answer within this time.
HEAD_S: Final = 5.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; silence of `timeout_s` is a TimeoutError."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def send(self, data: Any) -> None:
        """Send; whoever takes no request has answered already, and the answer says why."""
        with contextlib.suppress(BrokenPipeError):
            super().send(data)


def ask(socket_path: str, path: str, params: Mapping[str, str], timeout_s: float) -> Answer:
    """Sends one request and returns its answer, which the caller closes.

    `timeout_s` is how long the other side may be silent; until it begins to answer, it may not be
    so for longer than `HEAD_S`.

    Raises:
        Unreachable: nobody listens there, or not in time.
        BrokenAnswer: what came is no answer.
        StateDBError: the server's error, of the class that was raised there.
    """
    query = "?" + urlencode(params) if params else ""
    head_s = min(timeout_s, HEAD_S)
    connection = UnixConnection(socket_path, head_s)
    try:
        connection.request("GET", path + query)
        response = connection.getresponse()
        if connection.sock is not None:  # none after an answer that ends the connection
            connection.sock.settimeout(timeout_s)
    except http.client.HTTPException as error:  # some of them are OSErrors too
        connection.close()
        raise BrokenAnswer(f"{socket_path}: no answer: {error!r}") from error
    except OSError as error:
        connection.close()
        raise _unreachable(socket_path, error, head_s) from error
    answer = Answer(connection, response)
    if response.status != 200:
        with answer:
            raise _refusal(response.status, b"".join(answer.pieces()))
    return answer


class Answer:
    """A response, closed with its connection; what breaks while reading is a BrokenAnswer."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self._connection = connection
        self._response = response

    def json(self) -> dict[str, Any]:
        return dict(json.loads(b"".join(self.pieces())))

    def pieces(self) -> Iterator[bytes]:
        try:
            while piece := self._response.read1(1 << 16):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise BrokenAnswer(f"the answer broke off: {error!r}") from error

    def lines(self) -> Iterator[bytes]:
        """Complete lines without their end; empty ones (heartbeats) are left out."""
        rest = b""
        for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            yield from filter(None, lines)

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _unreachable(path: str, error: OSError, timeout_s: float) -> RemoteError:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            return Unreachable(f"nobody listens on {path}: is the agent running?")
        case PermissionError():
            return Unreachable(f"no permission to connect to {path}")
        case TimeoutError():
            return Unreachable(
                f"no answer from {path} within {timeout_s:g} s: its process is stopped or hangs"
            )
    return Unreachable(f"{path}: {error}")


def _refusal(status: int, body: bytes) -> errors.StateDBError:
    try:
        told = json.loads(body)
        message, name = told["error"], told["type"]
    except (ValueError, KeyError, TypeError):
        if status == 503:
            return Refused(body.decode(errors="replace").strip())
        return Refused(f"status {status}: {body[:200].decode(errors='replace').strip()}")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.StateDBError):
        return kind(message)
    return Refused(message)

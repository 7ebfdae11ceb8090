# SPDX-License-Identifier: Apache-2.0
"""Peers of `cilia-cni` that are no agent: each takes one connection and does one thing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cilia.program.serving import unix_socket

Behaviour = Callable[[socket.socket], None]


@contextmanager
def listening(path: Path, behaviour: Behaviour) -> Iterator[None]:
    """A peer at the socket until the end of the block."""
    with unix_socket(path) as listener:

        def attend() -> None:
            try:
                while True:
                    peer, _ = listener.accept()
                    with peer, suppress(OSError):  # the program ends the connection
                        behaviour(peer)
            except OSError:
                return  # the block has ended

        thread = threading.Thread(target=attend, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            assert not thread.is_alive()


def closes(peer: socket.socket) -> None:
    """End the connection without a byte."""


def says(data: bytes) -> Behaviour:
    """Return a peer that says this to any request and ends the connection."""

    def behaviour(peer: socket.socket) -> None:
        peer.recv(1 << 16)
        peer.sendall(data)

    return behaviour


closes_within_the_answer = says(b"CNI\1\0\0\0\0\0\0\0\5{")
speaks_http = says(b"HTTP/1.1 400 Bad Request\r\n\r\n")
answers_too_much = says(b"CNI\1\0\0\0\0\0\x10\0\1" + b" " * ((1 << 20) + 1))


def is_silent(peer: socket.socket) -> None:
    """Take the request and say nothing until the other side ends the connection."""
    while peer.recv(1 << 16):
        pass


def answers(status: int, output: bytes) -> Behaviour:
    """Return a peer that gives this answer to a request that it does not read to its end."""

    def behaviour(peer: socket.socket) -> None:
        peer.recv(12)
        peer.sendall(
            b"CNI\x01" + status.to_bytes(4, "big") + len(output).to_bytes(4, "big") + output
        )

    return behaviour

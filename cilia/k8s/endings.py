# SPDX-License-Identifier: Apache-2.0
"""Ends a request of urllib3 from another thread.

Its time-outs count anew with each byte, so a server that sends one now and then holds the thread
for days. Whoever gives a request up shuts its connection down: then the thread comes back at once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from kubernetes.client import ApiClient
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["Ending", "make_endable"]

_thread: Final = threading.local()


class Ending:
    """Of one request; `end` does nothing once it is over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._given_up = False

    @contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """The request that this thread makes in the block."""
        _thread.ending = self
        try:
            yield
        finally:
            del _thread.ending
            with self._lock:
                self._connection = None

    def uses(self, connection: socket.socket) -> None:
        """Note the connection that the request goes by."""
        with self._lock:
            self._connection = connection
            if self._given_up:
                _shut(connection)

    def end(self) -> None:
        with self._lock:
            self._given_up = True
            if self._connection is not None:
                _shut(self._connection)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


class _Endable(HTTPConnection):
    """Keeps a descriptor of its own, as TLS takes the first one over."""

    _handle: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        self._handle = made.dup()
        self._tell()
        return made

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._tell()
        super().request(*args, **kwargs)

    def close(self) -> None:
        super().close()
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _tell(self) -> None:
        ending: Ending | None = getattr(_thread, "ending", None)
        if ending is not None and self._handle is not None:
            ending.uses(self._handle)


class _EndableTls(_Endable, HTTPSConnection):
    """The same by TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Endable


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _EndableTls


def make_endable(api: ApiClient) -> None:
    """Have a client that was not used yet make connections that an `Ending` ends."""
    api.rest_client.pool_manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

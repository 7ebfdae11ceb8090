# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between this process and an API server.

ApiError
  Unreachable           no connection could be made
  ConnectionLost        a connection ended under a request
    Unresponsive        ... because the other side no longer answers
  Garbage               bytes that are no answer of an API server
  StatusError           the server refused: code, reason, when to come back
    Unauthorized        401: the credentials are not, or no longer, good
    Gone                410: what was asked for is older than what the server remembers
  StorageFailed         objects in files: a full disk, no directory, a lock that is not given back
  AccessError           no usable credentials or addresses; for the person who configures them
"""

from __future__ import annotations


class ApiError(Exception):
    """A request that was not answered."""


class Unreachable(ApiError):
    """No connection to this server."""


class ConnectionLost(ApiError):
    """The connection ended before the answer did."""


class Unresponsive(ConnectionLost):
    """The connection is open and the other side silent, also to a ping."""


class Garbage(ApiError):
    """An answer that cannot be understood."""


class StorageFailed(ApiError):
    """Files of objects cannot be read or written."""


class AccessError(ApiError):
    """Credentials or addresses are missing or cannot be read."""


class StatusError(ApiError):
    """An answer other than success. `retry_after_s` is 0 where the server does not say."""

    def __init__(self, code: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code}: {message}" if message else str(code))
        self.code = code
        self.retry_after_s = retry_after_s


class Unauthorized(StatusError):
    """401."""


class Gone(StatusError):
    """410."""


def status_error(code: int, message: str, retry_after_s: float = 0.0) -> StatusError:
    """The exception for a status code."""
    kind = {401: Unauthorized, 410: Gone}.get(code, StatusError)
    return kind(code, message, retry_after_s)

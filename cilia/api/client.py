# SPDX-License-Identifier: Apache-2.0
"""HTTP to the agent over its unix socket, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

__all__ = ["AgentUnreachable", "ApiError", "request", "request_text"]


class ApiError(Exception):
    """The agent answered with an error; the text is its own."""


class AgentUnreachable(ApiError):
    """Nothing listens on the socket, or this user may not open it."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def request(
    path: str, url: str, *, method: str = "GET", body: Any = None, timeout_s: float = 10.0
) -> Any:
    """The decoded JSON answer of the agent whose socket is `path`; raises as `request_text`."""
    return json.loads(request_text(path, url, method=method, body=body, timeout_s=timeout_s))


def request_text(
    path: str, url: str, *, method: str = "GET", body: Any = None, timeout_s: float = 10.0
) -> str:
    """The answer of the agent whose socket is `path`, as it is.

    Raises:
        AgentUnreachable: no agent there, or no permission; one sentence with what to do.
        ApiError: the agent answered with a status of 400 or above.
    """
    connection = _UnixConnection(path, timeout_s)
    try:
        payload = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, url, payload, headers)
        response = connection.getresponse()
        text = response.read().decode()
    except (FileNotFoundError, ConnectionRefusedError):
        raise AgentUnreachable(
            f"no agent answers on {path}: start `cilia agent`, or name another with --instance"
        ) from None
    except PermissionError:
        raise AgentUnreachable(f"no permission to open {path}: run this as root") from None
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(f"{path}: {error}") from None
    finally:
        connection.close()
    if response.status >= 400:
        raise ApiError(f"{url}: {response.status} {text.strip()}")
    return text

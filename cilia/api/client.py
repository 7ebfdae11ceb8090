# SPDX-License-Identifier: Apache-2.0
"""HTTP to the agent over its unix socket."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import time
from pathlib import Path
from typing import Any, Final

from statedb.web.unix_http import UnixConnection

__all__ = ["DEADLINE", "TIMEOUT_S", "AgentUnreachable", "ApiError", "request", "request_text"]

#: How long an agent may be silent.
TIMEOUT_S: Final = 5.0
#: Header with the time on this machine's monotonic clock after which nobody waits for the answer:
#: an agent that comes to the request later does nothing.
DEADLINE: Final = "X-Cilia-Deadline"


class ApiError(Exception):
    """The agent answered with an error; the text is its own."""


class AgentUnreachable(ApiError):
    """Nothing listens on the socket, or this user may not open it."""


class AgentSilent(AgentUnreachable):
    """The agent took the connection and does not answer in time."""


def request(
    path: str, url: str, *, method: str = "GET", body: Any = None, timeout_s: float = TIMEOUT_S
) -> Any:
    """The decoded JSON answer of the agent whose socket is `path`; raises as `request_text`."""
    return json.loads(request_text(path, url, method=method, body=body, timeout_s=timeout_s))


def request_text(
    path: str, url: str, *, method: str = "GET", body: Any = None, timeout_s: float = TIMEOUT_S
) -> str:
    """The answer of the agent whose socket is `path`, as it is.

    Raises:
        AgentUnreachable: no agent there, no answer in time, or no permission; one sentence with
            what to do.
        ApiError: the agent answered with a status of 400 or above.
    """
    connection = UnixConnection(path, timeout_s)
    try:
        payload = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        headers[DEADLINE] = str(time.monotonic() + timeout_s)
        connection.request(method, url, payload, headers)
        response = connection.getresponse()
        text = response.read().decode()
    except (FileNotFoundError, ConnectionRefusedError):
        raise AgentUnreachable(
            f"no agent answers on {path}: start `cilia agent`, or name another with --instance"
        ) from None
    except PermissionError:
        raise AgentUnreachable(f"no permission to open {path}: run this as root") from None
    except TimeoutError:
        raise AgentSilent(_silence(connection.sock, timeout_s)) from None
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(f"{path}: {error}") from None
    finally:
        connection.close()
    if response.status == 503 and response.headers.get_content_type() == "text/plain":
        raise ApiError(text.strip())  # no answer of the path, but of whoever is too busy for it
    if response.status >= 400:
        raise ApiError(f"{url}: {response.status} {text.strip()}")
    return text


def _silence(sock: socket.socket, timeout_s: float) -> str:
    """Say who does not answer, and what can be done about it."""
    pid, *_ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    text = f"the agent (pid {pid}) does not answer within {timeout_s:g} s: "
    if _is_stopped(pid):
        return f"{text}it is stopped; `kill -CONT {pid}` lets it go on"
    return (
        f"{text}it hangs or has no processor time; what is in force stays so without it, and"
        " `cilia bpf` shows that; look at its log, then restart it"
    )


def _is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")

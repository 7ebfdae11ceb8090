# SPDX-License-Identifier: Apache-2.0
"""Netfilter that begins to follow connections under a running agent is asked from then on."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from bpf.link import Link
from statedb.web.remote import RemoteDB
from tests.e2e import late_netfilter
from tests.e2e.nodes import Server, client_address, node_address, pod_address
from tests.e2e.passes import REMOTE, Asked, asked_world

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

OUTSIDE_PORTS = iter(range(9000, 9100))
ANSWER_S = 0.5


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Pods are masqueraded; the agent runs as on a kernel that has not loaded nf_conntrack."""
    directory = tmp_path_factory.mktemp("netfilter")
    with asked_world(directory, "netfilter", bridged=True) as made:
        late_netfilter.prepare(directory / "kernel")
        made.program = [sys.executable, "-m", late_netfilter.__name__, str(directory / "kernel")]
        made.running()
        made.eventually(lambda: made.get("/status")["replacement"] == "serve")
        yield made


def rows(w: Asked, table: str) -> list[dict[str, Any]]:
    db = RemoteDB(str(w.state_dir / "cilia.sock"))
    return list(db.table(table).all(db.read_txn()))


def told(w: Asked) -> str:
    """What the health of the look-up says."""
    (row,) = [row for row in rows(w, "health") if row["Component"] == "netfilter"]
    return str(row["Message"])


def answered(w: Asked, family: int) -> bool:
    """True if a pod is answered that asks from the port of a frontend: it keeps it when it is
    masqueraded, and what comes back goes to the frontend's address and port.
    """
    outside, port = client_address(family), next(OUTSIDE_PORTS)
    server = Server(w.nodes.client, "outside", outside, port, socket.SOCK_STREAM)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    try:
        with w.nodes.pod[1].netns.socket(kind, socket.SOCK_STREAM) as own:
            own.settimeout(ANSWER_S)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind((pod_address(1, family), REMOTE.node_port))
            own.connect((outside, port))
            own.sendall(b"\0\0\0\5hello")
            return own.recv(100).endswith(f"outside|{node_address(1, family)}|hello".encode())
    except OSError:
        return False
    finally:
        server.close()


def program_ids(w: Asked) -> dict[str, int]:
    """Of each link, also while it is replaced."""
    found = {}
    for path in (w.bpf_root / w.namespace / "attachments").iterdir():
        with suppress(FileNotFoundError), Link.open_pinned(path) as link:
            found[path.name] = link.info().program_id
    return found


def test_a_module_that_is_loaded_late_is_asked(w: Asked) -> None:
    assert "netfilter follows no connections yet" in told(w)
    assert not answered(w, 4)
    before = program_ids(w)
    late_netfilter.load(w.directory / "kernel")
    w.eventually(lambda: "look up netfilter's connections" in told(w))
    w.eventually(lambda: all(before[name] != n for name, n in program_ids(w).items()))
    assert program_ids(w).keys() == before.keys()
    w.eventually(lambda: answered(w, 4) and answered(w, 6))
    w.eventually(lambda: rows(w, "drift") == [])

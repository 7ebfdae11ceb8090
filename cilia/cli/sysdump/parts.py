# SPDX-License-Identifier: Apache-2.0
"""What is in an archive: a name and what gives its content, in the order of their worth.

From the agent: status, options, logs, metrics, tables (each as cells and as objects, JSON lines as
the agent sends them). From the kernel, also when no agent runs: the maps, links and programs of the
instance. What looks like a credential is struck out of texts and rows.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cilia
from bpf.errors import BPFError
from cilia.api.client import ApiError, request_text
from cilia.cli.sysdump.secrets import redacted, redacted_row
from statedb.errors import StateDBError
from statedb.web.remote import RemoteDB

__all__ = ["EXPECTED", "Node", "Part", "parts", "table_part"]

# Entries of a map that are read, and how many make a chunk.
MAP_ENTRIES: Final = 1 << 20
CHUNK: Final = 4096

Content = Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Node:
    """Where things are on this machine."""

    socket: str
    instance: str
    bpf_root: Path

    @property
    def pins(self) -> Path:
        return self.bpf_root / self.instance


@dataclass(frozen=True)
class Part:
    name: str
    content: Content


# What a part may fail with and be left out.
EXPECTED: Final = (ApiError, BPFError, StateDBError, OSError, ImportError)


def parts(node: Node) -> Iterator[Part]:
    """Every part; tables and maps are found as they are come to. The kernel's come first: an agent
    that hangs may keep the rest waiting.
    """
    yield Part("versions.json", _versions)
    yield Part("kernel/lb.txt", lambda: _lb(node))
    yield Part("kernel/links.json", lambda: _links(node))
    yield Part("kernel/maps.json", lambda: _map_list(node))
    for path in _pinned_maps(node):
        yield Part(f"kernel/maps/{path.name}.hex", lambda path=path: _map(path))  # type: ignore[misc]
    for name, url in AGENT:
        yield Part(name, lambda url=url: _answer(node, url))  # type: ignore[misc]
    yield Part("tables.json", lambda: _summary(node))
    for table in _tables(node):
        for form in ("cells", "object"):
            yield Part(
                table_part(table, form),
                lambda table=table, form=form: _rows(node, table, form),  # type: ignore[misc]
            )


AGENT: Final = (
    ("status.json", "/status"),
    ("config.json", "/config"),
    ("metrics.txt", "/metrics"),
    ("agent.log", "/logs"),
)


def table_part(table: str, form: str) -> str:
    return f"tables/{table}.{form}.jsonl"


def _versions() -> Iterator[bytes]:
    facts = {
        "cilia": cilia.__version__,
        "python": sys.version,
        "kernel": platform.uname()._asdict(),
    }
    yield json.dumps(facts, indent=2).encode()


def _answer(node: Node, url: str) -> Iterator[bytes]:
    yield redacted(request_text(node.socket, url)).encode()


def _summary(node: Node) -> Iterator[bytes]:
    yield json.dumps(RemoteDB(node.socket).summary(), indent=2).encode()


def _tables(node: Node) -> list[str]:
    """None where no agent answers: the part before says so."""
    try:
        return [table["name"] for table in RemoteDB(node.socket).summary()["tables"]]
    except StateDBError:
        return []


def _rows(node: Node, table: str, form: str) -> Iterator[bytes]:
    with RemoteDB(node.socket).ask("/query", table=table, kind="all", form=form) as answer:
        for line in answer.lines():
            yield redacted_row(line) + b"\n"


def _lb(node: Node) -> Iterator[bytes]:
    from bpf.maps.lb import LBMaps
    from bpf.maps.lb_dump import dump

    maps = LBMaps.open_pinned(node.pins / "maps")
    try:
        yield dump(maps).encode()
    finally:
        maps.close()


def _pinned_maps(node: Node) -> list[Path]:
    directory = node.pins / "maps"
    try:
        return sorted(path for path in directory.iterdir() if path.is_file())
    except OSError:
        return []


def _map_list(node: Node) -> Iterator[bytes]:
    from bpf.maps.map import Map

    found = []
    for path in _pinned_maps(node):
        with Map.open_pinned(path) as opened:
            found.append({"pin": str(path), **opened.info._asdict()})
    yield json.dumps(found, indent=2, default=str).encode()


def _map(path: Path) -> Iterator[bytes]:
    """A line an entry: key and value in hexadecimal, as the kernel has them."""
    from bpf.maps.map import Map

    lines: list[str] = []
    with Map.open_pinned(path) as opened:
        for number, (key, value) in enumerate(opened.items()):
            if number >= MAP_ENTRIES:
                lines.append(f"# cut after {MAP_ENTRIES} entries")
                break
            lines.append(f"{key.hex()} {value.hex()}")
            if len(lines) >= CHUNK:
                yield ("\n".join(lines) + "\n").encode()
                lines = []
    yield "".join(f"{line}\n" for line in lines).encode()


def _links(node: Node) -> Iterator[bytes]:
    """Links that are pinned below the instance, each with its program; then every link of the
    kernel, whoever made it."""
    from bpf.link import Link, all_links

    pinned: list[dict[str, Any]] = []
    for path in sorted(node.pins.rglob("*")):
        if path.parent.name in ("links", "attachments") and path.is_file():
            with Link.open_pinned(path) as link:
                pinned.append({"pin": str(path), **link.info()._asdict()})
    everything = [link._asdict() for link in all_links()]
    yield json.dumps({"pinned": pinned, "all": everything}, indent=2).encode()

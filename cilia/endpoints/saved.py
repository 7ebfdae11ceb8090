# SPDX-License-Identifier: Apache-2.0
"""Endpoints on disk: one file each, written before its devices are made, removed after them.

So a device of ours without a file can only be one whose file somebody took. Files are records
(`cilia/linux/records.py`); what cannot be read is left out, and the kernel is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from cilia.endpoints.state_files import ENDPOINTS, SUFFIX
from cilia.linux.records import NEW, make_directory, read_record, write_record
from tables.addressing import IP
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState

__all__ = ["SavedEndpoints"]

log = structlog.get_logger("endpoints")

VERSION: Final = 1


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An endpoint as its file has it; fields that a later version adds are ignored."""

    version: int
    id: int
    network: str
    container_id: str
    ifname: str
    device: str
    node_mac: str
    mac: str
    created_at: float
    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    ipv4: str = ""
    ipv6: str = ""
    netns_cookie: int = 0
    is_chained: bool = False
    labels: tuple[str, ...] = ()
    identity: int = 0


class SavedEndpoints:
    """The directory of the files, in the agent's state directory. Methods block."""

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / ENDPOINTS

    def number_of(self, path: Path) -> int | None:
        """Return whose file a path is, None if it is nobody's."""
        is_file = path.parent == self.directory and path.suffix == SUFFIX
        return int(path.stem) if is_file and path.stem.isdecimal() else None

    def make_directory(self) -> None:
        """Have it before the first endpoint: it tells `cilia cleanup` that this instance is a pod
        network. Raises: OSError.
        """
        make_directory(self.directory)

    def write(self, ep: Endpoint) -> None:
        """Replace an endpoint's file. Raises: OSError."""
        self.make_directory()
        write_record(self._path(ep.id), _record(ep))

    def update(self, ep: Endpoint) -> None:
        """Replace an endpoint's file if it says another identity. Raises: OSError."""
        found = _read(self._path(ep.id))
        if found is None or (found.labels, found.identity) != (ep.labels, ep.identity):
            self.write(ep)

    def remove(self, number: int) -> None:
        """Remove an endpoint's file, which may be gone. Raises: OSError."""
        self._path(number).unlink(missing_ok=True)

    def read(self) -> Iterator[Endpoint]:
        """Yield all that can be read, with index 0. Raises: OSError for the directory."""
        if not self.directory.is_dir():
            return
        for path in sorted(self.directory.iterdir()):
            if path.suffix == NEW:
                path.unlink(missing_ok=True)  # a kill came before it was whole
            elif path.suffix == SUFFIX and (ep := _read(path)) is not None:
                yield ep

    def _path(self, number: int) -> Path:
        return self.directory / f"{number}{SUFFIX}"


def _read(path: Path) -> Endpoint | None:
    try:
        record = read_record(path, Record)
        ep = None if record is None else _endpoint(record)
    except (OSError, ValueError) as error:
        log.error("the file of an endpoint cannot be read", file=str(path), error=str(error))
        return None
    if ep is not None and path.stem != str(ep.id):
        log.error("the file of an endpoint has another one's name", file=str(path), id=ep.id)
        return None
    return ep


def _record(ep: Endpoint) -> Record:
    return Record(
        version=VERSION,
        id=ep.id,
        network=ep.attachment.network,
        container_id=ep.attachment.container_id,
        ifname=ep.attachment.ifname,
        device=ep.device,
        node_mac=ep.node_mac.hex(":"),
        mac=ep.mac.hex(":"),
        created_at=ep.created_at,
        namespace=ep.namespace,
        pod=ep.pod,
        pod_uid=ep.pod_uid,
        ipv4=str(ep.ipv4 or ""),
        ipv6=str(ep.ipv6 or ""),
        netns_cookie=ep.netns_cookie,
        is_chained=ep.is_chained,
        labels=ep.labels,
        identity=ep.identity,
    )


def _endpoint(record: Record) -> Endpoint:
    """Raises: ValueError."""
    return Endpoint(
        id=record.id,
        attachment=Attachment(record.network, record.container_id, record.ifname),
        namespace=record.namespace,
        pod=record.pod,
        pod_uid=record.pod_uid,
        ipv4=IP.parse(record.ipv4) if record.ipv4 else None,
        ipv6=IP.parse(record.ipv6) if record.ipv6 else None,
        device=record.device,
        node_mac=_mac(record.node_mac),
        mac=_mac(record.mac),
        netns_cookie=record.netns_cookie,
        is_chained=record.is_chained,
        created_at=record.created_at,
        state=EndpointState.RESTORING,
        labels=record.labels,
        identity=record.identity,
    )


def _mac(text: str) -> bytes:
    raw = bytes.fromhex(text.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"{text!r} is no Ethernet address")
    return raw

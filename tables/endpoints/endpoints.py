# SPDX-License-Identifier: Apache-2.0
"""``endpoints``: the workloads of this node that have their network from us, one row a device.

A container runtime asks for an endpoint by its *attachment*: a network, a container and the name of
the interface inside. A pod has one endpoint or several, and for a short time two of one name: a new
sandbox may come before the old one is deleted.

The CNI plugin's handler makes and deletes rows, the controller of endpoints gives them labels and
identity and moves their state, and the reconciler (`reconcilers/endpoints/endpoints.py`) writes
them to the map ``cilia_endpoints`` and gives back ``status``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, StatusKind, new_table
from statedb.status import pending
from tables.addressing import IP
from tables.status_columns import STATUS_COLUMNS
from tables.times import age

TABLE_NAME: Final = "endpoints"

#: Numbers of endpoints, as in the field.
ID_MIN: Final = 1
ID_MAX: Final = 65_535


#: States of an endpoint that are kept.
LOG_ENTRIES: Final = 32


class EndpointState(StrEnum):
    """The states that clients of the field know, as far as they occur here."""

    WAITING_FOR_IDENTITY = "waiting-for-identity"
    RESTORING = "restoring"
    #: New, and not all of it is in force yet.
    WAITING_TO_REGENERATE = "waiting-to-regenerate"
    REGENERATING = "regenerating"
    READY = "ready"
    DISCONNECTING = "disconnecting"
    #: Its device is gone, and nobody asked for that.
    DISCONNECTED = "disconnected"


_HEALTH: Final = {
    EndpointState.WAITING_FOR_IDENTITY: "Bootstrap",
    EndpointState.RESTORING: "Bootstrap",
    EndpointState.WAITING_TO_REGENERATE: "Bootstrap",
    EndpointState.REGENERATING: "Pending",
    EndpointState.READY: "OK",
    EndpointState.DISCONNECTING: "Disabled",
    EndpointState.DISCONNECTED: "Failure",
}


class Attachment(msgspec.Struct, frozen=True, order=True):
    """What a container runtime knows an endpoint by."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id}/{self.ifname}"


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """A state that an endpoint came to, and what it waits for in it."""

    at: float  # seconds since the epoch
    state: EndpointState
    message: str = ""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    attachment: Attachment
    # Empty: a container outside Kubernetes.
    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    ipv4: IP | None = None
    ipv6: IP | None = None
    # The end of the pair of devices on the node's side, its index, and the addresses of both ends.
    device: str
    index: int = 0  # 0: not made yet
    node_mac: bytes
    mac: bytes
    netns_cookie: int = 0
    # Another plugin made the devices, gave the addresses and has the routes.
    is_chained: bool = False
    created_at: float  # seconds since the epoch
    # Written by the controller.
    state: EndpointState
    labels: tuple[str, ...] = ()  # those that make the identity: `SOURCE:KEY=VALUE`, sorted
    identity: int = 0  # 0: none yet
    # Names of annotations of its pod that ask for what is not built.
    ignored: tuple[str, ...] = ()
    # Seconds that each phase of its creation took.
    phases: Mapping[str, float] = {}
    # The states that it had, the last ones of LOG_ENTRIES, since this agent started.
    log: tuple[LogEntry, ...] = ()
    # Written by the reconciler.
    status: Status = msgspec.field(default_factory=pending)

    @property
    def health(self) -> str:
        """Its health in the field's words: OK, Bootstrap, Pending, Failure, or Disabled."""
        if self.status.kind is StatusKind.ERROR:
            return "Failure"
        return _HEALTH[self.state]

    def moved(self, state: EndpointState, at: float, message: str = "") -> Endpoint:
        """Return the endpoint in another state, with a log entry; itself if it has this state."""
        if state is self.state and self.log:
            return self
        log = (*self.log, LogEntry(at, state, message))[-LOG_ENTRIES:]
        return msgspec.structs.replace(self, state=state, log=log)

    @property
    def addresses(self) -> tuple[IP, ...]:
        """Its addresses, IPv4 first."""
        return tuple(ip for ip in (self.ipv4, self.ipv6) if ip is not None)

    @property
    def pod_name(self) -> str:
        """``NAMESPACE/POD``, or nothing."""
        return f"{self.namespace}/{self.pod}" if self.pod else ""

    @property
    def owner(self) -> str:
        """Who has its addresses, as far as that is known."""
        attachment = str(self.attachment) if self.attachment.container_id else ""
        return self.pod_name or attachment or self.device


def _attachment(ep: Endpoint) -> str:
    return str(ep.attachment)


def _pod(ep: Endpoint) -> tuple[str, ...]:
    return (ep.pod_name,) if ep.pod else ()


def _names(ep: Endpoint) -> tuple[str, ...]:
    return (ep.device,)


ID: Final = Index("id", key=attrgetter("id"), parse=int)
ATTACHMENT: Final = Index("attachment", key=_attachment, unique=False, parse=str)
POD: Final = Index("pod", keys=_pod, unique=False, parse=str)
ADDRESS: Final = Index("address", keys=lambda ep: ep.addresses, unique=False, parse=IP.parse)
DEVICE: Final = Index("device", keys=_names, unique=False, parse=str)


def _identity_cell(ep: Endpoint) -> str:
    return str(ep.identity) if ep.identity else "<no label id>"


def to_json(ep: Endpoint) -> dict[str, Any]:
    return {
        "ID": ep.id,
        "Network": ep.attachment.network,
        "ContainerID": ep.attachment.container_id,
        "Interface": ep.attachment.ifname,
        "Namespace": ep.namespace,
        "Pod": ep.pod,
        "PodUID": ep.pod_uid,
        "IPv4": str(ep.ipv4 or ""),
        "IPv6": str(ep.ipv6 or ""),
        "Device": ep.device,
        "Index": ep.index,
        "MAC": ep.mac.hex(":"),
        "NodeMAC": ep.node_mac.hex(":"),
        "NetnsCookie": ep.netns_cookie,
        "Chained": ep.is_chained,
        "Identity": ep.identity,
        "Labels": list(ep.labels),
        "State": ep.state.value,
        "IgnoredAnnotations": list(ep.ignored),
        "Health": ep.health,
        "Log": [{"At": e.at, "State": e.state.value, "Message": e.message} for e in ep.log],
        "PhasesMS": {name: round(s * 1000, 3) for name, s in ep.phases.items()},
        "Status": str(ep.status.kind),
        "Error": ep.status.error,
    }


COLUMNS: Final = (
    Column("ID", lambda ep: str(ep.id)),
    Column("Pod", lambda ep: ep.pod_name or ep.attachment.container_id[:12]),
    Column("Identity", _identity_cell),
    Column("IPv4", lambda ep: str(ep.ipv4 or "")),
    Column("IPv6", lambda ep: str(ep.ipv6 or "")),
    Column("Device", lambda ep: ep.device),
    Column("State", lambda ep: ep.state.value),
    Column("Age", lambda ep: age(ep.created_at)),
    *STATUS_COLUMNS,
)


def new_endpoints_table(db: DB) -> RWTable[Endpoint]:
    """Registers ``endpoints`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        ID,
        ATTACHMENT,
        POD,
        ADDRESS,
        DEVICE,
        columns=COLUMNS,
        row_type=Endpoint,
        to_json=to_json,
    )

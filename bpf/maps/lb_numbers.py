# SPDX-License-Identifier: Apache-2.0
"""The numbers of ``bpf/lib/lb_types.h`` by name; cheap to import, for tables too."""

from __future__ import annotations

from enum import IntEnum, IntFlag, StrEnum
from typing import Final

from bpf.layout import header

_HEADER: Final = header("lb_types.h")
_SCOPE: Final = _HEADER.numbers("LB_SCOPE_")
_TYPE: Final = _HEADER.numbers("LB_TYPE_")
_ALG: Final = _HEADER.numbers("LB_ALG_")
_SVC: Final = _HEADER.numbers("LB_SVC_")
_SOURCE: Final = _HEADER.numbers("LB_SOURCE_")
_BE: Final = _HEADER.numbers("LB_BE_")


class Scope(IntEnum):
    EXTERNAL = _SCOPE["EXTERNAL"]
    INTERNAL = _SCOPE["INTERNAL"]


class FrontendType(StrEnum):
    """Why a frontend exists, in the words of tables and dumps."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IPS = "ExternalIPs"
    HOST_PORT = "HostPort"
    LOCAL_REDIRECT = "LocalRedirect"

    @property
    def number(self) -> int:
        """Return its ``LB_TYPE_*``."""
        return _TYPE[self.name]


class Algorithm(IntEnum):
    """``LB_ALG_*``: how a backend is chosen; undef means that nothing is said about it."""

    UNDEF = _ALG["UNDEF"]
    RANDOM = _ALG["RANDOM"]
    MAGLEV = _ALG["MAGLEV"]
    LEAST_CONNECTIONS = _ALG["LEAST_CONNECTIONS"]

    @classmethod
    def named(cls, option: str) -> Algorithm:
        """By the value of an option or annotation: ``least-connections``. Raises: KeyError."""
        return _BY_LABEL[option]

    @property
    def label(self) -> str:
        """As options and annotations have it."""
        return self.name.replace("_", "-").lower()


_BY_LABEL: Final = {algorithm.label: algorithm for algorithm in Algorithm}

#: With these, packets look at a Maglev table: only connections of sockets are counted by backend.
BY_TABLE: Final = (Algorithm.MAGLEV, Algorithm.LEAST_CONNECTIONS)


class ServiceFlag(IntFlag):
    """``LB_SVC_*``, in the order in which the map dump prints them."""

    NONE = 0
    EXT_LOCAL = _SVC["EXT_LOCAL"]
    INT_LOCAL = _SVC["INT_LOCAL"]
    TWO_SCOPES = _SVC["TWO_SCOPES"]
    AFFINITY = _SVC["AFFINITY"]
    NON_ROUTABLE = _SVC["NON_ROUTABLE"]
    SOURCE_RANGE = _SVC["SOURCE_RANGE"]
    SOURCE_DENY = _SVC["SOURCE_DENY"]
    TRANSLATE_46X64 = _SVC["46X64"]
    L7 = _SVC["L7"]
    LOOPBACK = _SVC["LOOPBACK"]
    DELEGATE = _SVC["DELEGATE"]
    QUARANTINED = _SVC["QUARANTINED"]
    DSR = _SVC["DSR"]
    SOURCE_INSIDE = _SVC["SOURCE_INSIDE"]
    SOURCE_NOT_NODE = _SVC["SOURCE_NOT_NODE"]


class SourceMeaning(IntEnum):
    """``LB_SOURCE_*``: the meaning of a source range; an earlier version wrote none."""

    EITHER = _SOURCE["EITHER"]
    LET_IN = _SOURCE["LET_IN"]
    KEPT_OUT = _SOURCE["KEPT_OUT"]


class EntryState(IntEnum):
    """``LB_BE_*``: a backend as programs know it."""

    ACTIVE = _BE["ACTIVE"]
    TERMINATING = _BE["TERMINATING"]
    QUARANTINED = _BE["QUARANTINED"]
    MAINTENANCE = _BE["MAINTENANCE"]

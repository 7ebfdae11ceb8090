# SPDX-License-Identifier: Apache-2.0
"""Problems of services, told of the object that somebody wrote: a redirect policy and a pod with
host ports have services of their own, `NAMESPACE/NAME:WHAT...`.
"""

from __future__ import annotations

from typing import Final

from tables.addressing import ServiceName
from tables.problems import Problem

_KINDS: Final = {
    "": "Service",
    "local-redirect": "CiliumLocalRedirectPolicy",
    "host-port": "Pod",
}


def service_problem(origin: str, name: ServiceName, message: str, field: str = "") -> Problem:
    """Return a problem of the object that the service was made from."""
    object_name, *what = name.name.split(":")
    kind = _KINDS.get(what[0] if what else "", "Service")
    return Problem(
        origin, message, kind=kind, namespace=name.namespace, name=object_name, field=field
    )

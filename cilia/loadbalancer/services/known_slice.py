# SPDX-License-Identifier: Apache-2.0
"""What is kept of one EndpointSlice, in a module of its own that is not compiled: mypyc drops the
keywords of a class, `gc=False` among them."""

from __future__ import annotations

import msgspec

from cilia.loadbalancer.services.endpoints import Backends
from tables.addressing import ServiceName


class KnownSlice(msgspec.Struct, frozen=True, gc=False):
    """Its service and backends; nothing in it can lead back to it, and there are as many as
    slices, so that the collector need not know them.
    """

    service: ServiceName
    backends: Backends

# SPDX-License-Identifier: Apache-2.0
"""Source ports of the node that run out: programs tell it, and expired entries go at once.

::

    search for a port finds few ──cilia_signal──> PortPressure ──wait()──> ConntrackGC sweeps
                                                       └──> health: which destination, what helps
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

import anyio

from bpf.maps import nat
from bpf.maps.text import endpoint_text, protocol_name
from bpf.ringbuf import Batch

__all__ = ["PortPressure", "Signals"]

#: Between two reads: a flood of first packets must not keep the agent busy. What comes meanwhile
#: waits in the buffer, and what that has no room for says the same.
READ_PAUSE_S: Final = 0.2
#: After this time without a refusal there are ports again.
QUIET_S: Final = 30.0


class Signals(Protocol):
    """The buffer of `nat_pressure` records."""

    def read(self) -> Batch: ...
    def fileno(self) -> int: ...


class PortPressure:
    """One task calls `run`, another one `wait`."""

    def __init__(
        self,
        signals: Signals,
        tell: Callable[[bool, str], None],
        *,
        quiet_s: float = QUIET_S,
    ) -> None:
        """`tell`: gets True if ports are free, and a sentence."""
        self._signals = signals
        self._tell = tell
        self._quiet_s = quiet_s
        self._came = anyio.Event()

    async def wait(self) -> None:
        """Return when programs have told of pressure since the last return."""
        await self._came.wait()
        self._came = anyio.Event()

    async def run(self) -> None:
        """Read for ever."""
        self._tell(True, "source ports are free")
        refused_at = -math.inf
        while True:
            batch = self._signals.read()
            if batch.size:
                self._came.set()
                if refused := _last_refused(batch):
                    refused_at = anyio.current_time()
                    self._tell(False, _sentence(refused))
                await anyio.sleep(READ_PAUSE_S)
                continue
            quiet_at = refused_at + self._quiet_s if refused_at > -math.inf else math.inf
            with anyio.move_on_at(quiet_at) as quiet:
                await anyio.wait_readable(self._signals.fileno())
            if quiet.cancelled_caught:
                refused_at = -math.inf
                self._tell(True, "source ports are free")


def _last_refused(batch: Batch) -> nat.Pressure | None:
    records = map(nat.decode_pressure, batch.records())
    return next((record for record in reversed(list(records)) if record.refused), None)


def _sentence(pressure: nat.Pressure) -> str:
    destination = endpoint_text(pressure.address, pressure.port)
    return (
        f"no source port is free for {destination}/{protocol_name(pressure.proto)}:"
        " new flows of clients and pods to it are refused. More backends have more ports, and so"
        " has a --node-port-range that ends lower"
    )

# SPDX-License-Identifier: Apache-2.0
"""One leader of several replicas, by a Lease object that the leader renews.

                  renewed within the deadline
    candidate ---> leader -------------------> leader
        ^            |
        +------------+  deadline passed, or told to end

A candidate takes a lease that it saw unchanged for as long as the lease says, by its own clock:
clocks of machines are never compared. A leader stops its work when it could not renew for
`renew_deadline_s`, which is shorter, so that it has ended before another begins. A process that is
stopped and goes on later may do a last write after that; writes of the leader therefore name the
version that they change. Source: the scheme of client-go's leaderelection package.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
import structlog

from cilia.k8s.errors import ApiError, StatusError
from cilia.k8s.object_writer import CONFLICT, NOT_FOUND, ObjectWriter

__all__ = ["Election", "Timing"]

log = structlog.get_logger("operator")


@dataclass(frozen=True)
class Timing:
    """Seconds. A leader that is killed is replaced after at most lease + retry.

    Raises:
        ValueError: the leader would still work while another begins.
    """

    lease_s: float
    renew_deadline_s: float
    retry_s: float

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.renew_deadline_s < self.lease_s:
            raise ValueError(
                "needs retry period < renew deadline < lease duration, not"
                f" {self.retry_s:g} s, {self.renew_deadline_s:g} s, {self.lease_s:g} s"
            )


class Election:
    """One replica's part. `run` takes part until cancelled; `leading` says how it stands."""

    def __init__(
        self,
        api: ObjectWriter,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity, self.timing = identity, timing
        self.leading = False
        self.leader = ""  # who holds the lease, or held it until it ran out
        self.failure = ""  # why the lease could not be read or written last, empty if it could
        self.transitions = 0  # of the lease, since it exists
        self._api, self._clock = api, clock
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
        self._name = name
        self._lease: dict[str, Any] | None = None
        self._seen_version = ""
        self._seen_at = -math.inf
        self._says_s = timing.lease_s

    @property
    def present_leader(self) -> str:
        """Return who leads, nothing if nobody is known to: a lease that ran out is nobody's."""
        return self.leader if self.leading or not self._has_run_out() else ""

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Whenever this replica leads, `lead` runs, and is cancelled when it does not any more."""
        try:
            while True:
                renewed_at = await self._acquired()
                await self._lead(lead, renewed_at)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self.timing.retry_s):
                await self._release()

    async def _acquired(self) -> float:
        """Returns once this replica holds the lease: when the request was made that got it."""
        while True:
            at = self._clock()
            with anyio.move_on_after(self.timing.renew_deadline_s) as limit:
                if await self._try():
                    return at
            if limit.cancelled_caught:
                self.failure = f"no answer within {self.timing.renew_deadline_s:g} s"
            await anyio.sleep(self.timing.retry_s)  # the period of the protocol

    async def _lead(self, lead: Callable[[], Awaitable[None]], renewed_at: float) -> None:
        self.leading = True
        log.info("leading", identity=self.identity)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_cancelled, lead)
                await self._renew(renewed_at)
                group.cancel_scope.cancel()
        finally:
            self.leading = False
            log.warning("not leading any more", identity=self.identity, leader=self.leader)

    async def _renew(self, renewed_at: float) -> None:
        """Returns when the lease is lost: another one has it, or the deadline passed."""
        while True:
            await anyio.sleep(self.timing.retry_s)  # the period of the protocol
            at = self._clock()
            left_s = renewed_at + self.timing.renew_deadline_s - at
            with anyio.move_on_after(max(left_s, 0)):
                if await self._try():
                    renewed_at = at
                elif self.leader not in ("", self.identity):
                    return
            if self._clock() >= renewed_at + self.timing.renew_deadline_s:
                return

    async def _try(self) -> bool:
        """Take or renew the lease; True if this replica holds it now."""
        try:
            # A leader knows the lease: only it writes. A refusal says that this is not so.
            lease = self._lease if self.leading else None
            lease = lease or await self._read()
            if lease is None:
                await self._create()
            elif self.leader in ("", self.identity) or self._has_run_out():
                await self._write(lease)
            self.failure = ""
        except ApiError as error:
            self._lease = None
            self.failure = str(error)
            if not (isinstance(error, StatusError) and error.code == CONFLICT):
                log.warning("lease", error=str(error))
            elif self.leading:
                return await self._try()
            return False
        return self.leader == self.identity

    async def _read(self) -> dict[str, Any] | None:
        try:
            lease = json.loads(await self._api.fetch(self._path))
        except StatusError as error:
            if error.code == NOT_FOUND:
                return None
            raise
        self._observe(lease)
        return lease  # type: ignore[no-any-return]

    def _observe(self, lease: dict[str, Any]) -> None:
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, self._clock()
        self._lease = lease
        self.leader = lease["spec"].get("holderIdentity") or ""
        self.transitions = lease["spec"].get("leaseTransitions") or 0
        self._says_s = lease["spec"].get("leaseDurationSeconds") or self.timing.lease_s

    def _has_run_out(self) -> bool:
        return self._clock() >= self._seen_at + self._says_s

    async def _create(self) -> None:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": self._spec({}, self.identity),
        }
        self._observe(await self._api.create(self._path, body))

    async def _write(self, lease: dict[str, Any]) -> None:
        """The version in the body makes the API server refuse it if another was quicker."""
        body = {**lease, "spec": self._spec(lease["spec"], self.identity)}
        self._observe(await self._api.replace(self._path, body))

    def _spec(self, old: dict[str, Any], holder: str) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        taken = old.get("holderIdentity") != holder
        transitions = old.get("leaseTransitions") or 0
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": math.ceil(self.timing.lease_s),
            "acquireTime": now if taken else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": transitions + 1 if taken and old else transitions,
        }

    async def _release(self) -> None:
        """A replica that ends in order lets the others begin at once."""
        if self._lease is None or self.leader != self.identity:
            return
        body = {**self._lease, "spec": {**self._lease["spec"], "holderIdentity": ""}}
        try:
            await self._api.replace(self._path, body)
        except ApiError as error:
            log.warning("lease not released: others wait until it runs out", error=str(error))


async def _until_cancelled(lead: Callable[[], Awaitable[None]]) -> None:
    """Work that ends by itself does not end the leadership."""
    await lead()

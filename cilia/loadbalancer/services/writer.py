# SPDX-License-Identifier: Apache-2.0
"""The one writer of ``services``, ``frontends`` and ``backends``; it keeps them consistent.

Everything happens in one write transaction over all tables, one ``ServiceChange`` a service:

    1. the backends of the change's source replace what that source said before;
    2. the service row and its frontends replace the previous ones; an address that several services
       ask for goes to one of them (see `claims`), and the others wait for it with what they ask; of
       several sources that define a service, the preferred one is served and the others wait;
    3. every frontend that shows the service's backends gets them selected anew, and is pending;
    4. addresses that became free go to the first that waits.

What does not change is not written, so that the reconciler sees true changes only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final

import msgspec

from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.candidates import Candidates
from cilia.loadbalancer.services.claims import Claims, first, precedes
from cilia.loadbalancer.services.selection import in_order, probed, probed_backends, select_backends
from cilia.loadbalancer.shadows import Shadows, is_preferred
from cilia.loadbalancer.this_node import LocalNode
from statedb import DB, Initializer, RWTable, WriteTxn
from statedb.status import pending, set_status
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer import backends as be_table
from tables.loadbalancer import frontends as fe_table
from tables.loadbalancer.backends import Backend, new_backends_table
from tables.loadbalancer.frontend_claims import FrontendClaim, new_frontend_claims_table
from tables.loadbalancer.frontends import (
    Frontend,
    FrontendParams,
    new_frontends_table,
    params_of,
)
from tables.loadbalancer.services import Service, new_services_table
from tables.loadbalancer.shadowed_services import new_shadowed_services_table
from tables.problems import Problem
from tables.sources import Source


class Keep(Enum):
    """Says of a part of a change that it stays as it is."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


class ServiceChange(msgspec.Struct, frozen=True, gc=False):
    """What becomes of one service."""

    name: ServiceName
    # None: the service goes, and its frontends with it.
    service: Service | Keep | None = KEEP
    # All that the service asks for, in address order; meaningless without a service.
    frontends: Sequence[FrontendParams] = ()
    # All that ``source`` in ``cluster_id`` has for this service now.
    backends: Sequence[Backend] | Keep = KEEP
    source: Source = Source.K8S
    cluster_id: int = 0


class LoadBalancerTables:
    """The tables that belong together; ``problems`` is shared with others."""

    def __init__(self, db: DB, problems: RWTable[Problem]) -> None:
        self.services = new_services_table(db)
        self.frontends = new_frontends_table(db)
        self.backends = new_backends_table(db)
        self.claims = new_frontend_claims_table(db)
        self.shadows = new_shadowed_services_table(db)
        self.problems = problems


class Initializers:
    """One initializer of several tables."""

    def __init__(self, *each: Initializer) -> None:
        self._each = each

    def __call__(self, wtxn: WriteTxn) -> None:
        """Mark it done in all of them."""
        for done in self._each:
            done(wtxn)

    def stall(self, wtxn: WriteTxn) -> None:
        """Say that what is missing cannot be had now."""
        for initializer in self._each:
            initializer.stall(wtxn)


RedirectFor = Callable[[ServiceName, FrontendParams], ServiceName | None]


def _never(_: Service) -> bool:
    return False


class Writer:
    """Validated write access to the load-balancing tables.

    The node and the predicate for health-checked services may change while running.
    """

    def __init__(
        self,
        db: DB,
        tables: LoadBalancerTables,
        config: LoadBalancerOptions,
        node: LocalNode,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.db = db
        self.tables = tables
        self.config = config
        self.node = node
        self._is_health_checked: Callable[[Service], bool] = _never
        self._redirect_for: RedirectFor | None = None
        self.now = now
        # Whether a frontend was ever redirected, which saves a look-up for each change until then.
        self._redirects = False
        self._claims = Claims(tables.claims, tables.problems, now)
        self._shadows = Shadows(tables.shadows, tables.problems, now)

    def write_txn(self) -> WriteTxn:
        """A transaction over everything that ``apply`` may write."""
        t = self.tables
        return self.db.write_txn(
            t.services, t.frontends, t.backends, t.claims, t.shadows, t.problems
        )

    def set_node(self, node: LocalNode) -> None:
        """Take over another state of the node, and choose all backends anew by it."""
        self.node = node
        with self.write_txn() as wtxn:
            self.refresh_all(wtxn)

    def set_health_checked(self, is_health_checked: Callable[[Service], bool]) -> None:
        """Name the services whose backends count only when a probe says so; choose anew by it."""
        self._is_health_checked = is_health_checked
        with self.write_txn() as wtxn:
            self.refresh_all(wtxn)

    def set_redirects(self, redirect_for: RedirectFor | None) -> None:
        """Name who says where a frontend that is new is redirected."""
        self._redirect_for = redirect_for

    def register_initializer(self, name: str) -> Initializers:
        """Nothing is pruned from the datapath until the returned object was called."""
        t = self.tables
        with self.write_txn() as wtxn:
            return Initializers(
                t.services.register_initializer(wtxn, name),
                t.frontends.register_initializer(wtxn, name),
                t.backends.register_initializer(wtxn, name),
            )

    def apply(self, wtxn: WriteTxn, change: ServiceChange) -> None:
        """Makes one change. Idempotent."""
        name, t = change.name, self.tables
        rows: Sequence[Backend] = t.backends.list(wtxn, name, be_table.SERVICE)
        moved = False
        if change.backends is not KEEP:
            rows, moved = self._set_backends(wtxn, rows, change, change.backends)
        if change.service is KEEP:
            if moved:
                self._refresh(wtxn, t.frontends.list(wtxn, name, fe_table.SERVICE), rows)
        elif change.service is None:
            self._delete_service(wtxn, name, change.source)
        else:
            self._upsert_service(wtxn, change.service, change.frontends, rows, moved=moved)
        if moved and self._redirects:
            self._refresh(wtxn, t.frontends.list(wtxn, name, fe_table.REDIRECT), rows)

    # -- backends

    def _set_backends(
        self,
        wtxn: WriteTxn,
        rows: Sequence[Backend],
        change: ServiceChange,
        wanted: Sequence[Backend],
    ) -> tuple[Sequence[Backend], bool]:
        """Writes the difference; returns all rows of the service and whether any changed."""
        table = self.tables.backends
        if not rows:
            table.insert_many(wtxn, wanted)
            return wanted, bool(wanted)
        old: dict[L3n4Addr, Backend] = {}
        others: list[Backend] = []
        for be in rows:
            if be.source is change.source and be.cluster_id == change.cluster_id:
                old[be.address] = be
            else:
                others.append(be)
        changed = False
        for be in wanted:
            before = old.pop(be.address, None)
            if before is not None:
                be = _with_health_of(before, be)
                if before == be:
                    others.append(before)
                    continue
            table.insert(wtxn, be)
            others.append(be)
            changed = True
        for be in old.values():
            table.delete(wtxn, be)
            changed = True
        return others, changed

    def set_backend_health(
        self, wtxn: WriteTxn, name: ServiceName, address: L3n4Addr, *, healthy: bool
    ) -> bool:
        """Records a probe; true if it changed anything. Unknown backends are not recorded."""
        table = self.tables.backends
        rows = list(table.list(wtxn, name, be_table.SERVICE))
        changed = False
        for i, be in enumerate(rows):
            known = be.unhealthy is not healthy and be.unhealthy_updated_at is not None
            if be.address != address or known:
                continue
            rows[i] = msgspec.structs.replace(
                be, unhealthy=not healthy, unhealthy_updated_at=self.now()
            )
            table.insert(wtxn, rows[i])
            changed = True
        if changed:
            self.refresh_service(wtxn, name)
        return changed

    # -- services and frontends

    def _upsert_service(
        self,
        wtxn: WriteTxn,
        svc: Service,
        wanted: Sequence[FrontendParams],
        rows: Sequence[Backend],
        *,
        moved: bool,
    ) -> None:
        t, name = self.tables, svc.name
        before = t.services.get(wtxn, name)
        present: dict[L3n4Addr, Frontend] = {}
        if before is not None:
            present = {fe.address: fe for fe in t.frontends.list(wtxn, name, fe_table.SERVICE)}
            if is_preferred(before, svc):
                self._shadows.put(wtxn, svc, wanted, before)
                if moved:
                    self._refresh(wtxn, present.values(), rows)
                return
        claimed = self._claims.of(wtxn, name)
        if before is not None and before == svc:
            svc = before
        else:
            if before is not None and before.source is not svc.source:
                asked = [*map(params_of, present.values()), *(c.params for c in claimed.values())]
                self._shadows.put(wtxn, before, asked, svc)
                self._shadows.drop(wtxn, name, svc.source)
            t.services.insert(wtxn, svc)
        candidates = Candidates(in_order(rows) if len(rows) > 1 else rows)
        for params in wanted:
            fe = present.pop(params.address, None)
            if fe is None and not self._take(wtxn, svc, params):
                claimed.pop(params.address, None)
                continue
            redirect = fe.redirect_to if fe is not None else self._redirect_of(name, params)
            self._put(wtxn, params, svc, fe, candidates, redirect)
        for claim in claimed.values():
            self._claims.drop(wtxn, claim)
        for fe in present.values():
            t.frontends.delete(wtxn, fe)
        if self._claims.any(wtxn):
            self._settle(wtxn, [*present, *(params.address for params in wanted)])

    def _redirect_of(self, name: ServiceName, params: FrontendParams) -> ServiceName | None:
        if self._redirect_for is None:
            return None
        redirect = self._redirect_for(name, params)
        self._redirects = self._redirects or redirect is not None
        return redirect

    def _put(
        self,
        wtxn: WriteTxn,
        params: FrontendParams | Frontend,
        svc: Service,
        before: Frontend | None,
        candidates: Candidates,
        redirect: ServiceName | None,
    ) -> None:
        """Writes one frontend with the backends chosen for it, if it is not so already."""
        if redirect is not None:
            rows = self.tables.backends.list(wtxn, redirect, be_table.SERVICE)
            candidates = Candidates(in_order(rows))
        eligible = candidates.of(params.port_name)
        probes = self._is_health_checked is not _never and self._is_health_checked(svc)
        chosen = select_backends(
            params.address,
            params.type,
            params.port_name,
            svc,
            probed(eligible) if probes else eligible,
            self.node,
            self.config,
            redirected=redirect is not None,
        )
        all_chosen = chosen
        if probes:
            all_chosen = probed_backends(
                params.address,
                params.type,
                params.port_name,
                svc,
                eligible,
                self.node,
                self.config,
            )
        row = Frontend(
            params.address,
            params.type,
            svc.name,
            params.port_name,
            params.service_port or params.address.port,
            svc,
            chosen,
            all_chosen,
            redirect,
            pending() if before is None else before.status,
            0 if before is None else before.id,
        )
        if before is None:
            self.tables.frontends.insert(wtxn, row)
        elif row != before:
            self.tables.frontends.insert(wtxn, set_status(row, pending()))

    def _refresh(self, wtxn: WriteTxn, fes: Iterable[Frontend], rows: Sequence[Backend]) -> None:
        candidates = Candidates(in_order(rows) if len(rows) > 1 else rows)
        for fe in list(fes):
            self._put(wtxn, fe, fe.service, fe, candidates, fe.redirect_to)

    def refresh_service(self, wtxn: WriteTxn, name: ServiceName) -> None:
        """Selects the backends anew for every frontend that shows those of this service."""
        t = self.tables
        rows = list(t.backends.list(wtxn, name, be_table.SERVICE))
        self._refresh(wtxn, t.frontends.list(wtxn, name, fe_table.SERVICE), rows)
        self._refresh(wtxn, t.frontends.list(wtxn, name, fe_table.REDIRECT), rows)

    def refresh_all(self, wtxn: WriteTxn) -> None:
        """After a change of the node or of what is health-checked."""
        for svc in list(self.tables.services.all(wtxn)):
            self.refresh_service(wtxn, svc.name)

    def set_redirect(self, wtxn: WriteTxn, address: L3n4Addr, to: ServiceName | None) -> None:
        """Lets a frontend show the backends of another service, or (None) its own again."""
        fe = self.tables.frontends.get(wtxn, address)
        if fe is None or fe.redirect_to == to:
            return
        self._redirects = True
        rows = () if to else self.tables.backends.list(wtxn, fe.service_name, be_table.SERVICE)
        self._put(wtxn, fe, fe.service, fe, Candidates(in_order(rows)), to)

    def _delete_service(self, wtxn: WriteTxn, name: ServiceName, source: Source) -> None:
        t = self.tables
        svc = t.services.get(wtxn, name)
        self._shadows.drop(wtxn, name, source)
        if svc is None or svc.source is not source:
            return
        for claim in self._claims.of(wtxn, name).values():
            self._claims.drop(wtxn, claim)
        fes = list(t.frontends.list(wtxn, name, fe_table.SERVICE))
        for fe in fes:
            t.frontends.delete(wtxn, fe)
        t.services.delete(wtxn, svc)
        heir = self._shadows.take(wtxn, name)
        if heir is not None:
            rows = t.backends.list(wtxn, name, be_table.SERVICE)
            self._upsert_service(wtxn, heir.service, heir.frontends, rows, moved=False)
        if self._claims.any(wtxn):
            self._settle(wtxn, [fe.address for fe in fes])

    # -- ownership

    def _take(self, wtxn: WriteTxn, svc: Service, params: FrontendParams) -> bool:
        """Whether the service may have the address now. If not it waits, else its owner does."""
        owner = self.tables.frontends.get(wtxn, params.address)
        if owner is None:
            return True
        if not precedes(params.type, svc, owner):
            self._claims.put(wtxn, svc, params, owner)
            return False
        self._displace(wtxn, owner)
        return True

    def _displace(self, wtxn: WriteTxn, owner: Frontend) -> None:
        """Let the owner of an address wait for it."""
        self._claims.put(wtxn, owner.service, params_of(owner), owner)

    def _settle(self, wtxn: WriteTxn, addresses: Iterable[L3n4Addr]) -> None:
        """Give each address that claims wait for to the first of them, unless its owner precedes
        it; those that wait on learn who has it.
        """
        t = self.tables
        for address in addresses:
            waiting = self._claims.at(wtxn, address)
            if not waiting:
                continue
            claim, owner = first(waiting), t.frontends.get(wtxn, address)
            if owner is None or precedes(claim.params.type, claim.service, owner):
                if owner is not None:
                    self._displace(wtxn, owner)
                self._claims.drop(wtxn, claim)
                self._grant(wtxn, claim)
            owner = t.frontends.get(wtxn, address)
            assert owner is not None
            for claim in self._claims.at(wtxn, address):
                self._claims.put(wtxn, claim.service, claim.params, owner)

    def _grant(self, wtxn: WriteTxn, claim: FrontendClaim) -> None:
        name, params = claim.service.name, claim.params
        rows = self.tables.backends.list(wtxn, name, be_table.SERVICE)
        redirect = self._redirect_of(name, params)
        self._put(wtxn, params, claim.service, None, Candidates(in_order(rows)), redirect)


def _with_health_of(before: Backend, be: Backend) -> Backend:
    """Health belongs to the checker: a new reading of the object does not change it."""
    if before.unhealthy_updated_at is None:
        return be
    return msgspec.structs.replace(
        be, unhealthy=before.unhealthy, unhealthy_updated_at=before.unhealthy_updated_at
    )

# SPDX-License-Identifier: Apache-2.0
"""The load-balancer maps follow the table `frontends`.

A round plans all of its rows in memory (ids, references, keys and values), then `staged_maps`
writes the differences: backends, then slots, then the master entry last; removal is the other way
round. `frontend_plans` says what an address needs; here is which addresses a row stands for, and
what becomes of a row whose write failed. Ids are given out while planning, so a write that fails
and is tried again changes none.
All state here is a cache: `restore` rebuilds it from the maps, and the rows do the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from bpf.maps.lb import LBMaps, decode_id, encode_id
from reconcilers.loadbalancer import frontend_entries as layout
from reconcilers.loadbalancer.earlier_run import EarlierRun
from reconcilers.loadbalancer.frontend_config import FrontendConfig
from reconcilers.loadbalancer.frontend_holds import Holds
from reconcilers.loadbalancer.frontend_maps import FrontendMaps
from reconcilers.loadbalancer.frontend_plans import FrontendPlanner
from reconcilers.loadbalancer.id_allocator import IdsExhaustedError
from reconcilers.loadbalancer.machine_addresses import MachineAddresses
from reconcilers.loadbalancer.node_ports import NodePortAddresses, surrogate_of
from reconcilers.maps.staged import BEFORE_BACKENDS_GO, Phase, Plan, Step, admit, write
from reconcilers.operations import Entry
from statedb import ReadTxn, Table
from tables.addressing import L3n4Addr
from tables.loadbalancer.frontends import Frontend, with_outcome
from tables.node.node_addresses import NodeAddress


class StillReferencedError(Exception):
    """A backend stays for now: a frontend whose update failed still leads to it."""


class PruneError(Exception):
    """Some foreign entries could not be deleted."""


class HeldBackError(Exception):
    """A row waits for inputs that are unread; what is in force of it stays."""


class UnreadBackendsError(Exception):
    """A row is in force, and beside it what was before: more of its backends may be unread."""


class FrontendOperations:
    """Operations, batch operations and verification for `Reconciler[Frontend]`.

    Not thread-safe. `node_addresses` gives the addresses that answer for node ports, `machines`
    those that no Service has for itself, `frontends` tells who owns one. The maps are read once
    here; `restore` starts from them anew.
    """

    def __init__(
        self,
        maps: LBMaps,
        frontends: Table[Frontend],
        node_addresses: Table[NodeAddress],
        config: FrontendConfig,
        machines: MachineAddresses | None = None,
    ) -> None:
        self.config = config
        self._frontends = frontends
        self._machines = machines or MachineAddresses(node_addresses)
        self._node_ports = NodePortAddresses(node_addresses, config)
        self._maps = FrontendMaps(maps)
        self._holds: Holds | None = None
        self._unread: frozenset[str] = frozenset()
        # Rows whose last attempt was none.
        self._held_back: set[L3n4Addr] = set()
        self.restore()

    # -- start --

    def restore(self) -> None:
        """Forget everything and take ids and contents from the maps."""
        self._maps.load()
        self._planner = FrontendPlanner(self._maps, self._machines, self.config)
        self._planner.waits_for_machines = self._holds is not None
        self._earlier = EarlierRun(self._maps, self._planner)
        self._expanded: dict[L3n4Addr, tuple[L3n4Addr, ...]] = {}
        # What a failed attempt of a row has still to write and delete.
        self._unfinished: dict[L3n4Addr, list[tuple[Phase, Step]]] = {}
        # Rows that nobody could say the entries of: an earlier run's may be theirs.
        self._unplanned: set[L3n4Addr] = set()
        # A batch was cut short: what it has in the maps may be what no row knows of.
        self._in_doubt = False
        self._had_entries = bool(self._planner.restored.slots)
        self._told = False  # whether all source ranges say what they mean

    def hold_back(self, holds: Holds) -> None:
        """From now on, carry out only what `holds` lets pass, and remove nothing while it says that
        something is unread."""
        self._holds = holds
        self._planner.waits_for_machines = True

    @property
    def doubtful(self) -> frozenset[L3n4Addr]:
        """Addresses whose wildcard entry waits for Node objects."""
        return frozenset(self._planner.doubtful)

    @property
    def restored(self) -> bool:
        """Whether the maps held frontends at the last `restore`."""
        return self._had_entries

    def summary(self) -> dict[str, int]:
        """Sizes of the state in memory, by the names that scripts know."""
        planner = self._planner
        programmed = planner.programmed.values()
        return {
            "serviceIDs": len(planner.services.ids),
            "restoredServiceIDs": len(planner.services.restored),
            "backendIDs": len(planner.backends.ids),
            "restoredBackendIDs": len(planner.backends.restored),
            "backendStates": len(planner.references),
            "backendReferences": sum(1 for held in programmed if held.backends),
            "nodePortAddrByPort": len(self._expanded),
            "prevSourceRanges": self._maps.count_with_sources(held.details for held in programmed),
            "restoredQuarantines": len(planner.restored.quarantined),
            "wildcardReferences": len(planner.wildcards),
        }

    def map_entries(self) -> dict[str, int]:
        """Entries of each map by its name, without reading any."""
        return {target.raw.name: len(target.content) for target in self._maps.all()}

    # -- operations --

    def update(self, txn: ReadTxn, revision: int, obj: Frontend) -> Frontend | None:
        entry: Entry[Frontend] = Entry(obj, revision)
        self.update_batch(txn, (entry,))
        if entry.error is not None:
            raise entry.error
        return entry.result

    def delete(self, txn: ReadTxn, revision: int, obj: Frontend) -> None:
        entry: Entry[Frontend] = Entry(obj, revision, deleted=True)
        self.delete_batch(txn, (entry,))
        if entry.error is not None:
            raise entry.error

    def update_batch(self, txn: ReadTxn, entries: Sequence[Entry[Frontend]]) -> None:
        self._carry_out(txn, self._let_pass(txn, entries), self._plan_update)
        programmed = self._planner.programmed
        for entry in entries:
            obj = entry.obj
            if entry.error is None:
                entry.error = self._refusal(txn, obj)
            held = programmed.get(obj.address)
            number = 0 if held is None or held.owner != obj.address else held.id
            if obj.id != number:
                entry.result = with_outcome(obj, obj.status, number)

    def delete_batch(self, txn: ReadTxn, entries: Sequence[Entry[Frontend]]) -> None:
        self._carry_out(txn, self._let_pass(txn, entries), self._plan_delete)

    def prune(self, txn: ReadTxn, objects: Iterable[Frontend]) -> None:
        """Remove what no programmed frontend leads to. Raises: PruneError.

        Every row was attempted, so an address that none of them has is foreign. An entry that a
        failed row still leads to stays, and the prune has to come again.
        """
        if self._held_back:
            raise PruneError(f"{len(self._held_back)} frontends wait for inputs that are unread")
        if self._unplanned:
            raise PruneError(f"{len(self._unplanned)} frontends failed: what was theirs is unknown")
        planner = self._planner
        if self._unfinished or self._in_doubt or planner.retired or self._maps.have_unclaimed():
            self._prune()
            self._in_doubt = planner.retired = False
        planner.services.forget_restored()
        planner.backends.forget_restored()
        planner.restored.forget_all_but(planner.programmed)

    def _prune(self) -> None:
        """Look through all entries. Raises: PruneError."""
        plan, planner = Plan(), self._planner
        masters = self._maps.masters(planner.programmed, planner.wildcards.keys())
        programmed = planner.programmed.values()
        numbers = {encode_id(held.id) for held in programmed}
        details: set[Step] | None = None
        if not self._unfinished:
            details = {step for held in programmed for step in held.details}
        in_use = sum(fam.prune(plan, masters, numbers, details) for fam in self._maps.families)
        write([plan], BEFORE_BACKENDS_GO)
        if plan.error is None:
            numbers = {encode_id(number) for number in planner.backends.ids.values()}
            in_use += sum(fam.prune_backends(plan, numbers) for fam in self._maps.families)
            write([plan], (Phase.BACKEND_GONE,))
        if plan.error is not None:
            raise PruneError(f"foreign entries remain: {plan.error}") from plan.error
        if in_use:
            raise PruneError(f"entries in use by frontends whose update failed: {in_use}")

    # -- verification --

    def actual(self) -> Mapping[Any, Any]:
        return self._maps.read_back()

    def expected(
        self, txn: ReadTxn, objects: Iterable[Frontend]
    ) -> Iterator[tuple[Any, Any, Frontend]]:
        for row in objects:
            fe = self._with_unseen(row)
            for addr in (fe.address, *self._expanded.get(fe.address, ())):
                held = self._planner.programmed.get(addr)
                if held is not None and held.owner == fe.address:
                    for _, target, key, value in self._planner.wanted(fe, addr, held):
                        yield (target, key), value, row

    def describe(self, key: Any, value: Any | None) -> tuple[str, str]:
        return self._maps.describe(key, value)

    # -- waiting for inputs --

    def _let_pass(
        self, txn: ReadTxn, entries: Sequence[Entry[Frontend]]
    ) -> Sequence[Entry[Frontend]]:
        """Return those that need not wait; the others have an error."""
        unread = self._unread = frozenset() if self._holds is None else self._holds.unread(txn)
        if not unread:
            self._earlier.forget()
        if not unread and not self._held_back:
            return entries
        passing = []
        for entry in entries:
            reason = self._reason(unread, entry) if unread else ""
            if reason:
                self._held_back.add(entry.obj.address)
                entry.error = HeldBackError(f"waits, and is in force as it was: {reason}")
            else:
                self._held_back.discard(entry.obj.address)
                passing.append(entry)
        return passing

    def _reason(self, unread: frozenset[str], entry: Entry[Frontend]) -> str:
        assert self._holds is not None
        address = entry.obj.address
        if not entry.deleted:
            reason = self._holds.reason(unread, entry.obj)
            if not reason and self._holds.may_lack_services(unread):
                is_given = self._holds.is_given(unread, entry.obj)
                reason = self._earlier.refusal(entry.obj, is_given=is_given)
            return reason
        if address in self._planner.programmed or address in self._expanded:
            return "it is removed once all inputs are read"
        return ""  # the prune removes it

    def _with_unseen(self, fe: Frontend) -> Frontend:
        if not self._unread or self._holds is None:
            return fe
        if not self._holds.may_lack_services(self._unread):
            return fe
        return self._earlier.with_unseen(fe)

    # -- planning an update --

    def _plan_update(self, txn: ReadTxn, row: Frontend) -> Plan:
        plan = Plan()
        plan.resume(self._unfinished.get(row.address, ()))
        try:
            fe = self._with_unseen(row)
            if not layout.is_programmed(fe, self.config) or self._is_node_ports(txn, fe):
                self._remove_all(txn, plan, fe.address)
                return plan
            self._planner.program(plan, fe, fe.address)
            if fe.address.is_surrogate:
                self._expand(txn, plan, fe)
        except Exception as error:  # noqa: BLE001  this row's failure, not the round's
            plan.error = error
        return plan

    def _is_node_ports(self, txn: ReadTxn, fe: Frontend) -> bool:
        """True if a node port has the address of `fe`: it came first or not, it keeps it."""
        return self._node_ports.node_port_at(partial(self._frontends.get, txn), fe) is not None

    def _refusal(self, txn: ReadTxn, fe: Frontend) -> Exception | None:
        """Return what the status of a row says that is in force otherwise than the row is."""
        unseen = len(self._with_unseen(fe).backends) - len(fe.backends)
        if unseen:
            return UnreadBackendsError(
                f"in force beside {unseen} of its backends of before, which may be of an input that"
                " is unread"
            )
        if not self._node_ports.could_be_node_port(fe) or not layout.is_programmed(fe, self.config):
            return None
        return self._node_ports.refusal(partial(self._frontends.get, txn), fe)

    def _expand(self, txn: ReadTxn, plan: Plan, fe: Frontend) -> None:
        """A surrogate address stands for every node address: an entry for each."""
        addresses = self._node_ports.expand(lambda addr: self._frontends.get(txn, addr), fe)
        for gone in self._expanded.get(fe.address, ()):
            if gone not in addresses:
                self._give_up(txn, plan, gone, fe.address)
        self._expanded[fe.address] = addresses
        for addr in addresses:
            self._planner.program(plan, fe, addr)

    # -- planning a removal --

    def _plan_delete(self, txn: ReadTxn, fe: Frontend) -> Plan:
        plan = Plan()
        plan.resume(self._unfinished.get(fe.address, ()))
        try:
            self._remove_all(txn, plan, fe.address)
        except Exception as error:  # noqa: BLE001  as in _plan_update
            plan.error = error
        return plan

    def _remove_all(self, txn: ReadTxn, plan: Plan, address: L3n4Addr) -> None:
        self._give_up(txn, plan, address, address)
        for addr in self._expanded.pop(address, ()):
            self._give_up(txn, plan, addr, address)

    def _give_up(self, txn: ReadTxn, plan: Plan, addr: L3n4Addr, owner: L3n4Addr) -> None:
        """Remove an address of the row `owner`, and program it for another row that wants it."""
        self._planner.remove(plan, addr, owner)
        heir = self._frontends.get(txn, addr)
        if heir is not None and heir.address != owner and layout.is_programmed(heir, self.config):
            self._planner.program(plan, heir, addr)
            return
        if not self._expanded:
            return
        surrogate = surrogate_of(addr)
        if surrogate != owner and surrogate in self._expanded:
            heir = self._frontends.get(txn, surrogate)
            if heir is not None:
                self._expand(txn, plan, heir)

    # -- writing --

    def _carry_out(
        self,
        txn: ReadTxn,
        entries: Sequence[Entry[Frontend]],
        plan_of: Callable[[ReadTxn, Frontend], Plan],
    ) -> None:
        doubtful, self._in_doubt = self._in_doubt, True
        try:
            self._node_ports.refresh(txn)
            self._machines.refresh(txn)
        except Exception:
            self._unplanned.update(entry.obj.address for entry in entries)
            raise
        untold = self._tell_meanings()
        plans = [plan_of(txn, entry.obj) for entry in entries]
        for entry, plan in zip(entries, plans, strict=True):
            if plan.error is not None or self._unplanned:
                self._note_unplanned(entry.obj.address, plan.error)
            plan.error = plan.error or untold
        admit(plans, self._maps.all())
        write(plans, BEFORE_BACKENDS_GO)
        self._note_unfinished(entries, plans)
        if self._unfinished:
            self._hold_backends(plans)
        write(plans, (Phase.BACKEND_GONE,))
        self._note_unfinished(entries, plans)
        self._in_doubt = doubtful

    def _tell_meanings(self) -> Exception | None:
        """Once after a start, before a frontend changes: see `FamilyMaps.tell_meanings`."""
        plan = Plan()
        if not self._told:
            for family in self._maps.families:
                unclaimed = set(family.source.unclaimed)
                family.tell_meanings(plan)
                family.source.unclaimed = unclaimed  # no row has asked for them yet
            write([plan], (Phase.DETAIL,))
            self._told = plan.error is None
        return plan.error

    def _note_unplanned(self, address: L3n4Addr, error: Exception | None) -> None:
        if error is None or isinstance(error, IdsExhaustedError):  # a prune makes room for those
            self._unplanned.discard(address)
        else:
            self._unplanned.add(address)

    def _note_unfinished(self, entries: Sequence[Entry[Frontend]], plans: Sequence[Plan]) -> None:
        for entry, plan in zip(entries, plans, strict=True):
            if plan.error is not None:
                entry.error = plan.error
                self._unfinished[entry.obj.address] = plan.outstanding()
            elif self._unfinished:
                self._unfinished.pop(entry.obj.address, None)

    def _hold_backends(self, plans: Iterable[Plan]) -> None:
        """Frontends whose update failed are in force as they were: what they lead to must stay."""
        in_use = self._in_use()
        for plan in plans:
            if plan.error is None:
                for step in plan.steps(Phase.BACKEND_GONE):
                    if step in in_use:
                        plan.error = StillReferencedError(
                            f"backend {decode_id(step[1])} is in use by a frontend that failed"
                        )
                        break

    def _in_use(self) -> set[Step]:
        in_use: set[Step] = set()
        for row, steps in self._unfinished.items():
            for phase, (target, key) in steps:
                if phase is Phase.SLOT_GONE:
                    step = self._maps.family_of(target).slot_leads_to(key)
                    if step is not None:
                        in_use.add(step)
                elif phase in (Phase.DETAIL, Phase.DETAIL_GONE):  # what is there until it is done
                    in_use.update(self._maps.family_of(target).detail_leads_to(target, key))
            for addr in (row, *self._expanded.get(row, ())):
                in_use.update(self._maps.of(addr).leads_to(addr))
        return in_use


__all__ = [
    "FrontendConfig",
    "FrontendOperations",
    "HeldBackError",
    "PruneError",
    "StillReferencedError",
]

# SPDX-License-Identifier: Apache-2.0
"""The load-balancer maps follow the table `frontends`.

A round plans all of its rows in memory (ids, references, keys and values), then `staged_maps`
writes the differences: backends, then slots, then the master entry last; removal is the other way
round. Ids are given out while planning, so a write that fails and is tried again changes none.
All state here is a cache: `restore` rebuilds it from the maps, and the rows do the rest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bpf.maps.lb import ID, LBMaps, decode_id
from reconcilers import frontend_entries as layout
from reconcilers.backend_references import BackendReferences
from reconcilers.frontend_details import Detail, details_of, has_details
from reconcilers.frontend_entries import Choice, FrontendConfig
from reconcilers.frontend_maps import FrontendMaps
from reconcilers.id_allocator import IdAllocator
from reconcilers.node_ports import NodePortAddresses, surrogate_of
from reconcilers.operations import Entry
from reconcilers.reconciler import Reconciler
from reconcilers.restored_frontends import Restored
from reconcilers.staged_maps import (
    BEFORE_BACKENDS_GO,
    Phase,
    Plan,
    StagedMap,
    Step,
    admit,
    write,
)
from statedb import ReadTxn, Table, wait_initialized
from tables.addressing import L3n4Addr
from tables.frontends import Frontend, with_outcome
from tables.node_addresses import NodeAddress

encode_id = ID.pack
# Looking up a member of an enumeration costs as much as the rest of a step.
_BACKEND, _DETAIL, _SLOT, _MASTER = Phase.BACKEND, Phase.DETAIL, Phase.SLOT, Phase.MASTER
_MASTER_GONE, _SLOT_GONE = Phase.MASTER_GONE, Phase.SLOT_GONE
_DETAIL_GONE, _BACKEND_GONE = Phase.DETAIL_GONE, Phase.BACKEND_GONE


class StillReferencedError(Exception):
    """A backend stays for now: a frontend whose update failed still leads to it."""


class PruneError(Exception):
    """Some foreign entries could not be deleted."""


class _Programmed:
    """An address that is in the maps: its highest slot, its backends with their states, and which
    entries it has that most have not."""

    __slots__ = ("backends", "details", "id", "owner", "slots", "wildcard")

    def __init__(self, number: int, slots: int, details: frozenset[Step]) -> None:
        self.id = number
        self.owner: L3n4Addr | None = None  # address of the row that programmed it last
        self.slots = slots
        self.backends: dict[L3n4Addr, int] = {}
        self.wildcard = False
        self.details = details


class FrontendOperations:
    """Operations, batch operations and verification for `Reconciler[Frontend]`.

    Not thread-safe. `node_addresses` gives the addresses that answer for node ports, `frontends`
    tells who owns one. The maps are read once here; `restore` starts from them anew.
    """

    def __init__(
        self,
        maps: LBMaps,
        frontends: Table[Frontend],
        node_addresses: Table[NodeAddress],
        config: FrontendConfig,
    ) -> None:
        self._config = config
        self._frontends = frontends
        self._node_ports = NodePortAddresses(node_addresses, config)
        self._maps = FrontendMaps(maps)
        self.restore()

    # -- start --

    def restore(self) -> None:
        """Forget everything and take ids and contents from the maps."""
        self._maps.load()
        self._services: IdAllocator[L3n4Addr] = IdAllocator("frontend")
        self._backends: IdAllocator[L3n4Addr] = IdAllocator("backend")
        self._references = BackendReferences()
        self._programmed: dict[L3n4Addr, _Programmed] = {}
        self._expanded: dict[L3n4Addr, tuple[L3n4Addr, ...]] = {}
        self._wildcards: dict[bytes, dict[L3n4Addr, int]] = {}  # by address
        # What a failed attempt of a row has still to write and delete.
        self._unfinished: dict[L3n4Addr, list[tuple[Phase, Step]]] = {}
        self._restored = Restored()
        for family in self._maps.families:
            self._restored.read(
                family.service.content,
                family.backend.content,
                family.rev_nat.content,
                self._services,
                self._backends,
            )
            for number, step in family.details_by_number():
                self._restored.details.setdefault(number, set()).add(step)
                self._services.reserve(number)
        self._had_entries = bool(self._restored.slots)

    @property
    def restored(self) -> bool:
        """Whether the maps held frontends at the last `restore`."""
        return self._had_entries

    def summary(self) -> dict[str, int]:
        """Sizes of the state in memory, by the names that scripts know."""
        return {
            "serviceIDs": len(self._services.ids),
            "restoredServiceIDs": len(self._services.restored),
            "backendIDs": len(self._backends.ids),
            "restoredBackendIDs": len(self._backends.restored),
            "backendStates": len(self._references),
            "backendReferences": sum(1 for p in self._programmed.values() if p.backends),
            "nodePortAddrByPort": len(self._expanded),
            "prevSourceRanges": self._maps.count_with_sources(
                programmed.details for programmed in self._programmed.values()
            ),
            "restoredQuarantines": len(self._restored.quarantined),
            "wildcardReferences": len(self._wildcards),
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
        self._node_ports.refresh(txn)
        plans = [self._plan_update(txn, entry.obj) for entry in entries]
        self._carry_out(entries, plans)
        for entry in entries:
            programmed = self._programmed.get(entry.obj.address)
            number = 0 if programmed is None else programmed.id
            if entry.obj.id != number:
                entry.result = with_outcome(entry.obj, entry.obj.status, number)

    def delete_batch(self, txn: ReadTxn, entries: Sequence[Entry[Frontend]]) -> None:
        self._node_ports.refresh(txn)
        self._carry_out(entries, [self._plan_delete(txn, entry.obj) for entry in entries])

    def prune(self, txn: ReadTxn, objects: Iterable[Frontend]) -> None:
        """Remove what no programmed frontend leads to. Raises: PruneError.

        Every row was attempted, so an address that none of them has is foreign. An entry that a
        failed row still leads to stays, and the prune has to come again.
        """
        plan = Plan()
        masters = self._maps.masters(self._programmed, self._wildcards)
        numbers = {encode_id(programmed.id) for programmed in self._programmed.values()}
        details: set[Step] | None = None
        if not self._unfinished:
            details = {step for held in self._programmed.values() for step in held.details}
        held = sum(family.prune(plan, masters, numbers, details) for family in self._maps.families)
        write([plan], BEFORE_BACKENDS_GO)
        if plan.error is None:
            numbers = {encode_id(number) for number in self._backends.ids.values()}
            held += sum(family.prune_backends(plan, numbers) for family in self._maps.families)
            write([plan], (Phase.BACKEND_GONE,))
        if plan.error is not None:
            raise PruneError(f"foreign entries remain: {plan.error}") from plan.error
        if held:
            raise PruneError(f"entries in use by frontends whose update failed: {held}")
        self._services.forget_restored()
        self._backends.forget_restored()
        self._restored.forget_all_but(self._programmed)

    # -- verification --

    def actual(self) -> Mapping[Any, Any]:
        return self._maps.read_back()

    def expected(
        self, txn: ReadTxn, objects: Iterable[Frontend]
    ) -> Iterator[tuple[Any, Any, Frontend]]:
        for fe in objects:
            for addr in (fe.address, *self._expanded.get(fe.address, ())):
                programmed = self._programmed.get(addr)
                if programmed is not None and programmed.owner == fe.address:
                    choice = layout.choose(fe, self._restored.quarantine(addr, fe))
                    details = self._details(fe, addr, programmed, choice)
                    wanted = self._wanted(fe, addr, programmed, choice, details)
                    for _, target, key, value in wanted:
                        yield (target, key), value, fe

    def describe(self, key: Any, value: Any | None) -> tuple[str, str]:
        return self._maps.describe(key, value)

    # -- planning an update --

    def _plan_update(self, txn: ReadTxn, fe: Frontend) -> Plan:
        plan = Plan()
        plan.resume(self._unfinished.get(fe.address, ()))
        try:
            if not layout.is_programmed(fe, self._config):
                self._remove_all(txn, plan, fe.address)
                return plan
            self._program(plan, fe, fe.address)
            if fe.address.is_surrogate:
                self._expand(txn, plan, fe)
        except Exception as error:  # noqa: BLE001  this row's failure, not the round's
            plan.error = error
        return plan

    def _expand(self, txn: ReadTxn, plan: Plan, fe: Frontend) -> None:
        """A surrogate address stands for every node address: an entry for each."""
        addresses = self._node_ports.expand(lambda addr: self._frontends.get(txn, addr), fe)
        for gone in self._expanded.get(fe.address, ()):
            if gone not in addresses:
                self._give_up(txn, plan, gone, fe.address)
        self._expanded[fe.address] = addresses
        for addr in addresses:
            self._program(plan, fe, addr)

    def _program(self, plan: Plan, fe: Frontend, addr: L3n4Addr) -> None:
        programmed = self._programmed.get(addr)
        if programmed is None:
            number = self._services.acquire(addr)
            programmed = _Programmed(
                number, self._restored.slots.get(addr, 0), self._restored.take_details(number)
            )
            self._programmed[addr] = programmed
        programmed.owner = fe.address
        choice = layout.choose(fe, self._restored.quarantine(addr, fe))
        self._reference(plan, choice, programmed)
        self._reference_wildcard(plan, fe, addr, programmed)
        details = self._details(fe, addr, programmed, choice)
        for phase, target, key, value in self._wanted(fe, addr, programmed, choice, details):
            plan.put(phase, target, key, value)
        if details or programmed.details:
            kept = frozenset((target, key) for target, key, _ in details)
            for target, key in programmed.details - kept:
                plan.remove(_DETAIL_GONE, target, key)
            programmed.details = kept
        shown = len(choice.shown)
        if programmed.slots > shown:
            keys, service = layout.service_keys(addr), self._maps.of(addr).service
            for slot in range(shown + 1, programmed.slots + 1):
                plan.remove(_SLOT_GONE, service, keys.slot(slot))
        programmed.slots = shown

    def _wanted(
        self,
        fe: Frontend,
        addr: L3n4Addr,
        programmed: _Programmed,
        choice: Choice,
        details: Iterable[Detail],
    ) -> list[tuple[Phase, StagedMap, bytes, bytes]]:
        """All entries of one address, once its backends have ids."""
        family, number, ids = self._maps.of(addr), programmed.id, self._backends.ids
        service, state = family.service, self._references.state
        flags = layout.master_flags(fe, addr, self._config)
        found: list[tuple[Phase, StagedMap, bytes, bytes]] = []
        for be in choice.backends:
            backend = be.address
            target = self._maps.of(backend).backend
            value = layout.backend_value(backend, state(backend))
            found.append((_BACKEND, target, encode_id(ids[backend]), value))
        found.append((_DETAIL, family.rev_nat, encode_id(number), layout.rev_nat_value(addr)))
        for holder, key, value in details:
            found.append((_DETAIL, holder, key, value))
        keys = layout.service_keys(addr)
        for slot, value in enumerate(layout.slot_values(fe, number, flags, choice, ids), 1):
            found.append((_SLOT, service, keys.slot(slot), value))
        master = layout.master_value(fe, number, flags, choice, self._config)
        found.append((_MASTER, service, keys.slot(0), master))
        if programmed.wildcard:
            key, value = self._wildcard(addr)
            found.append((_MASTER, service, key, value))
        return found

    def _details(
        self, fe: Frontend, addr: L3n4Addr, programmed: _Programmed, choice: Choice
    ) -> list[Detail]:
        if not has_details(fe, self._config):
            return []
        ids, family = self._backends.ids, self._maps.of(addr)
        return list(details_of(fe, addr, programmed.id, choice, ids, family, self._config))

    def _reference(self, plan: Plan, choice: Choice, programmed: _Programmed) -> None:
        """Move the references of an address to its present backends.

        Orphans lose their id before new backends get theirs.
        """
        held = programmed.backends
        backends = {be.address: layout.entry_state(be.state) for be in choice.backends}
        if backends == held:
            return
        for addr in [addr for addr in held if addr not in backends]:
            self._release(plan, addr, held.pop(addr))
        for addr, state in backends.items():
            before = held.get(addr)
            if before != state:
                self._backends.acquire(addr)
                self._references.add(addr, state)
                held[addr] = state
                if before is not None:
                    self._references.remove(addr, before)

    def _reference_wildcard(
        self, plan: Plan, fe: Frontend, addr: L3n4Addr, programmed: _Programmed
    ) -> None:
        wildcard = (
            layout.wants_wildcard(fe, self._config)
            and addr == fe.address
            and addr[:16] not in self._node_ports.all_addresses
        )
        if wildcard:
            self._wildcards.setdefault(addr[:16], {})[addr] = layout.plain_type(fe)
        elif programmed.wildcard:
            self._release_wildcard(plan, addr)
        programmed.wildcard = wildcard

    def _wildcard(self, addr: L3n4Addr) -> tuple[bytes, bytes]:
        """Key and value for the address as a whole; frontends of two types agree on the first."""
        owners = self._wildcards[addr[:16]]
        return layout.wildcard_key(addr), layout.wildcard_value(owners[min(owners)])

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
        self._remove(plan, addr, owner)
        heir = self._frontends.get(txn, addr)
        if heir is not None and heir.address != owner and layout.is_programmed(heir, self._config):
            self._program(plan, heir, addr)
            return
        surrogate = surrogate_of(addr)
        if surrogate != owner and surrogate in self._expanded:
            heir = self._frontends.get(txn, surrogate)
            if heir is not None:
                self._expand(txn, plan, heir)

    def _remove(self, plan: Plan, addr: L3n4Addr, owner: L3n4Addr) -> None:
        programmed = self._programmed.get(addr)
        if programmed is None or programmed.owner != owner:
            return
        del self._programmed[addr]
        family, keys = self._maps.of(addr), layout.service_keys(addr)
        plan.remove(_MASTER_GONE, family.service, keys.slot(0))
        for slot in range(1, programmed.slots + 1):
            plan.remove(_SLOT_GONE, family.service, keys.slot(slot))
        plan.remove(_DETAIL_GONE, family.rev_nat, encode_id(programmed.id))
        for target, key in programmed.details:
            plan.remove(_DETAIL_GONE, target, key)
        if programmed.wildcard:
            self._release_wildcard(plan, addr)
        for be, state in programmed.backends.items():
            self._release(plan, be, state)
        self._services.release(addr)
        self._restored.forget(addr)

    def _release(self, plan: Plan, addr: L3n4Addr, state: int) -> None:
        target = self._maps.of(addr).backend
        if self._references.remove(addr, state):
            value = layout.backend_value(addr, self._references.state(addr))
            plan.put(_BACKEND, target, encode_id(self._backends.ids[addr]), value)
            return
        number = self._backends.release(addr)
        if number is not None:
            plan.remove(_BACKEND_GONE, target, encode_id(number))

    def _release_wildcard(self, plan: Plan, addr: L3n4Addr) -> None:
        owners, service = self._wildcards[addr[:16]], self._maps.of(addr).service
        del owners[addr]
        if owners:
            plan.put(_MASTER, service, *self._wildcard(addr))
        else:
            del self._wildcards[addr[:16]]
            plan.remove(_MASTER_GONE, service, layout.wildcard_key(addr))

    # -- writing --

    def _carry_out(self, entries: Sequence[Entry[Frontend]], plans: Sequence[Plan]) -> None:
        admit(plans, self._maps.all())
        write(plans, BEFORE_BACKENDS_GO)
        for entry, plan in zip(entries, plans, strict=True):
            if plan.error is not None:
                self._unfinished[entry.obj.address] = plan.outstanding()
            elif self._unfinished:
                self._unfinished.pop(entry.obj.address, None)
        if self._unfinished:
            self._hold_backends(plans)
        write(plans, (Phase.BACKEND_GONE,))
        for entry, plan in zip(entries, plans, strict=True):
            if plan.error is not None:
                entry.error = plan.error
                self._unfinished[entry.obj.address] = plan.outstanding()

    def _hold_backends(self, plans: Iterable[Plan]) -> None:
        """Frontends whose update failed are in force as they were: what they lead to must stay."""
        in_use = self._in_use()
        for plan in plans:
            if plan.error is None:
                for step in plan.steps(_BACKEND_GONE):
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


async def run_frontends(
    reconciler: Reconciler[Frontend], operations: FrontendOperations, *tables: Table[Any]
) -> None:
    """Run the reconciler; if the maps held frontends at start, wait until `tables` are filled.

    Half-filled tables would take backends away from frontends that are in force. The wait has no
    limit: as long as a source does not answer, what was in force is the best that is known.
    """
    if operations.restored:
        await wait_initialized(reconciler.db, *tables)
    await reconciler.run()


__all__ = [
    "FrontendConfig",
    "FrontendOperations",
    "PruneError",
    "StillReferencedError",
    "run_frontends",
]

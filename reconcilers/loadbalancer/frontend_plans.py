# SPDX-License-Identifier: Apache-2.0
"""What the load-balancer maps shall hold for each address, and the steps from what they hold.

An address is programmed for one row of `frontends`. Ids and references are given out and taken back
here, in memory, while a round is planned; `staged_maps` does the writing. All state is a cache:
`FrontendPlanner` is made from what the maps hold, and the rows do the rest.
"""

from collections.abc import Iterable

from mypy_extensions import mypyc_attr

from bpf.maps.lb import ID
from reconcilers.loadbalancer import frontend_entries as layout
from reconcilers.loadbalancer.backend_references import BackendReferences
from reconcilers.loadbalancer.frontend_config import FrontendConfig
from reconcilers.loadbalancer.frontend_details import Detail, details_of, has_details
from reconcilers.loadbalancer.frontend_entries import Choice
from reconcilers.loadbalancer.frontend_maps import FrontendMaps
from reconcilers.loadbalancer.id_allocator import IdAllocator, IdsExhaustedError
from reconcilers.loadbalancer.machine_addresses import MachineAddresses
from reconcilers.loadbalancer.restored_frontends import Restored
from reconcilers.loadbalancer.wildcard_owners import WildcardOwners
from reconcilers.maps.staged import Phase, Plan, StagedMap, Step
from tables.addressing import L3n4Addr
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import Frontend

encode_id = ID.pack
# Looking up a member of an enumeration costs as much as the rest of a step.
_BACKEND, _DETAIL, _SLOT, _MASTER = Phase.BACKEND, Phase.DETAIL, Phase.SLOT, Phase.MASTER
_MASTER_GONE, _SLOT_GONE = Phase.MASTER_GONE, Phase.SLOT_GONE
_DETAIL_GONE, _BACKEND_GONE = Phase.DETAIL_GONE, Phase.BACKEND_GONE
_NO_WILDCARD = -1


@mypyc_attr(acyclic=True)  # as many as frontends: the collector need not walk them
class Programmed:
    """An address that is in the maps: its highest slot, its backends as they were last seen, the
    type that its wildcard entry would have, and which entries it has that most have not."""

    __slots__ = ("backends", "details", "id", "owner", "slots", "wildcard")

    def __init__(self, number: int, owner: L3n4Addr, slots: int, details: frozenset[Step]) -> None:
        self.id = number
        self.owner = owner  # address of the row that programmed it last
        self.slots = slots
        self.backends: tuple[Backend, ...] = ()
        self.wildcard = _NO_WILDCARD
        self.details = details


class FrontendPlanner:
    """Plans for one address at a time; not thread-safe."""

    def __init__(
        self, maps: FrontendMaps, machines: MachineAddresses, config: FrontendConfig
    ) -> None:
        """Takes ids and contents from the maps as they were loaded."""
        self._config = config
        self._maps = maps
        self._machines = machines
        self.services: IdAllocator[L3n4Addr] = IdAllocator("frontend")
        self.backends: IdAllocator[L3n4Addr] = IdAllocator("backend")
        self.references = BackendReferences()
        self.programmed: dict[L3n4Addr, Programmed] = {}
        self.wildcards = WildcardOwners()
        # Addresses without a wildcard entry as long as they may turn out to be a machine's.
        self.doubtful: set[L3n4Addr] = set()
        self.waits_for_machines = False
        # A backend of a frontend of before, which the prune is to look at.
        self.retired = False
        self._led_to: set[bytes] | None = None
        self.restored = Restored()
        for family in maps.families:
            self.restored.read(
                family.service.content,
                family.backend.content,
                family.rev_nat.content,
                self.services,
                self.backends,
            )
            for number, step in family.details_by_number():
                self.restored.details.setdefault(number, set()).add(step)
                self.services.reserve(number)

    # -- programming an address --

    def program(self, plan: Plan, fe: Frontend, addr: L3n4Addr) -> None:
        """Plan all entries of `addr` as the row `fe` wants them. Raises: IdsExhaustedError."""
        programmed = self.programmed.get(addr)
        if programmed is None:
            number = self.services.acquire(addr)
            restored = self.restored
            programmed = Programmed(
                number, fe.address, restored.slots.get(addr, 0), restored.take_details(number)
            )
            self.programmed[addr] = programmed
        programmed.owner = fe.address
        choice = layout.choose(fe, self.restored.quarantine(addr, fe))
        if programmed.backends is not fe.backends:
            self._reference(plan, fe, choice, programmed)
        self._reference_wildcard(plan, fe, addr, programmed)
        details = self._details(fe, addr, programmed, choice)
        plan.put_all(self._wanted(fe, addr, programmed, choice, details))
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

    def wanted(
        self, fe: Frontend, addr: L3n4Addr, programmed: Programmed
    ) -> list[tuple[Phase, StagedMap, bytes, bytes]]:
        """All entries that `addr` has by now, if the maps are right."""
        choice = layout.choose(fe, self.restored.quarantine(addr, fe))
        details = self._details(fe, addr, programmed, choice)
        return self._wanted(fe, addr, programmed, choice, details)

    def _wanted(
        self,
        fe: Frontend,
        addr: L3n4Addr,
        programmed: Programmed,
        choice: Choice,
        details: Iterable[Detail],
    ) -> list[tuple[Phase, StagedMap, bytes, bytes]]:
        """All entries of one address, once its backends have ids."""
        family, number, ids = self._maps.of(addr), programmed.id, self.backends.ids
        service, state = family.service, self.references.state
        flags = layout.master_flags(fe, addr, self._config, self._machines.own)
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
        if programmed.wildcard != _NO_WILDCARD:
            key = layout.wildcard_key(addr)
            found.append((_MASTER, service, key, self._wildcard_value(key)))
        return found

    def _details(
        self, fe: Frontend, addr: L3n4Addr, programmed: Programmed, choice: Choice
    ) -> list[Detail]:
        if not has_details(fe, self._config):
            return []
        ids, family = self.backends.ids, self._maps.of(addr)
        return list(details_of(fe, addr, programmed.id, choice, ids, family, self._config))

    def _reference(self, plan: Plan, fe: Frontend, choice: Choice, programmed: Programmed) -> None:
        """Move the references of an address to its present backends.

        Orphans lose their id before new backends get theirs, in the order of the choice.
        """
        held = {be.address: be for be in programmed.backends}
        if held:
            present = {be.address for be in fe.backends}
            for addr in [addr for addr in held if addr not in present]:
                self._release(plan, held.pop(addr))
        referred: list[Backend] = []
        try:
            for be in choice.backends:
                self._refer_to(be, held.get(be.address) if held else None)
                referred.append(be)
        except IdsExhaustedError:
            held.update((be.address, be) for be in referred)
            programmed.backends = tuple(held.values())
            raise
        programmed.backends = fe.backends

    def _refer_to(self, be: Backend, before: Backend | None) -> None:
        state = layout.entry_state(be.state)
        if before is None:
            self.backends.acquire(be.address)
            self.references.add(be.address, state)
        elif (seen := layout.entry_state(before.state)) != state:
            self.references.add(be.address, state)
            self.references.remove(be.address, seen)

    def _reference_wildcard(
        self, plan: Plan, fe: Frontend, addr: L3n4Addr, programmed: Programmed
    ) -> None:
        wanted = (
            layout.wants_wildcard(fe, self._config)
            and addr == fe.address
            and not self._machines.has(addr)
        )
        if wanted and self.waits_for_machines and not self._machines.complete:
            # Nobody knows yet that no machine has the address; an entry of before stays.
            self.doubtful.add(addr)
            return
        if self.doubtful:
            self.doubtful.discard(addr)
        if wanted:
            programmed.wildcard = layout.plain_type(fe)
            self.wildcards.add(layout.wildcard_key(addr), addr)
        elif programmed.wildcard != _NO_WILDCARD:
            self._release_wildcard(plan, addr)
            programmed.wildcard = _NO_WILDCARD

    def _wildcard_value(self, key: bytes) -> bytes:
        return layout.wildcard_value(self.programmed[self.wildcards.first(key)].wildcard)

    # -- removing an address --

    def remove(self, plan: Plan, addr: L3n4Addr, owner: L3n4Addr) -> None:
        """Plan the removal of an address, unless another row than `owner` has it by now."""
        programmed = self.programmed.get(addr)
        if programmed is None or programmed.owner != owner:
            return
        del self.programmed[addr]
        self.doubtful.discard(addr)
        family, keys = self._maps.of(addr), layout.service_keys(addr)
        plan.remove(_MASTER_GONE, family.service, keys.slot(0))
        for slot in range(1, programmed.slots + 1):
            plan.remove(_SLOT_GONE, family.service, keys.slot(slot))
        plan.remove(_DETAIL_GONE, family.rev_nat, encode_id(programmed.id))
        for target, key in programmed.details:
            plan.remove(_DETAIL_GONE, target, key)
        if programmed.wildcard != _NO_WILDCARD:
            self._release_wildcard(plan, addr)
        for be in programmed.backends:
            self._release(plan, be)
        self.services.release(addr)
        self.restored.forget(addr)

    def _release(self, plan: Plan, be: Backend) -> None:
        addr = be.address
        target = self._maps.of(addr).backend
        if self.references.remove(addr, layout.entry_state(be.state)):
            value = layout.backend_value(addr, self.references.state(addr))
            plan.put(_BACKEND, target, encode_id(self.backends.ids[addr]), value)
            return
        number = self.backends.release(addr)
        if number is None:
            return
        if self.restored.slots and self._is_led_to(number):
            self.backends.restore(addr, number)
            self.retired = True
            return
        plan.remove(_BACKEND_GONE, target, encode_id(number))

    def _is_led_to(self, number: int) -> bool:
        """Whether a frontend of before may name a backend: one that no row had by the first time
        that this was asked. Until the prune such a backend stays, and so does its number.
        """
        if self._led_to is None:
            others = [addr for addr in self.restored.slots if addr not in self.programmed]
            self._led_to = {key for addr in others for _, key in self._maps.of(addr).leads_to(addr)}
        return encode_id(number) in self._led_to

    def _release_wildcard(self, plan: Plan, addr: L3n4Addr) -> None:
        key, service = layout.wildcard_key(addr), self._maps.of(addr).service
        if self.wildcards.remove(key, addr):
            plan.put(_MASTER, service, key, self._wildcard_value(key))
        else:
            plan.remove(_MASTER_GONE, service, key)

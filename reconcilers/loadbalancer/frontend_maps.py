# SPDX-License-Identifier: Apache-2.0
"""The staged load-balancer maps of both families, and what is found by looking through them."""

from collections.abc import Collection, Container, Iterable, Iterator
from typing import Any

from bpf.maps.lb import (
    ID,
    IPV4,
    IPV6,
    PRESENT,
    LBFamilyMaps,
    LBMaps,
    decode_id,
    decode_service,
    encode_id,
    encode_source_meaning,
    match_backend_id,
    match_rev_nat,
    service_backend_id,
    service_rev_nat,
)
from bpf.maps.lb_dump import (
    affinity_match_line,
    backend_line,
    rev_nat_line,
    scale_to_zero_line,
    service_line,
    source_range_line,
)
from bpf.maps.lb_numbers import ServiceFlag
from bpf.maps.tables import MARK_BYTES
from reconcilers.loadbalancer import frontend_entries as layout
from reconcilers.loadbalancer.staged_tables import StagedTables
from reconcilers.maps.staged import Phase, Plan, StagedMap, Step
from tables.addressing import IP, V4_PREFIX, L3n4Addr


class FamilyMaps:
    """The staged maps of one address family.

    The slot stands from `slot_start` to `slot_stop` in a key of the service map.
    """

    __slots__ = (
        "affinity",
        "backend",
        "maglev",
        "rev_nat",
        "scale_to_zero",
        "service",
        "slot_start",
        "slot_stop",
        "source",
    )

    def __init__(self, maps: LBFamilyMaps, slot: slice) -> None:
        self.service = StagedMap(maps.service)
        self.backend = StagedMap(maps.backend)
        self.rev_nat = StagedMap(maps.rev_nat)
        self.affinity = StagedMap(maps.affinity_match)
        self.source = StagedMap(maps.source)
        self.maglev = StagedTables(maps.maglev)
        self.scale_to_zero = StagedMap(maps.scale_to_zero)
        self.slot_start: int = slot.start
        self.slot_stop: int = slot.stop

    def all(self) -> tuple[StagedMap, ...]:
        return (self.service, self.backend, self.rev_nat, *self.details())

    def details(self) -> tuple[StagedMap, ...]:
        """Those with entries that only some frontends have."""
        return (self.affinity, self.source, self.maglev, self.scale_to_zero)

    def number_in(self, target: StagedMap, key: bytes) -> bytes:
        """The frontend's id in a key of `details` or of the reverse map."""
        return key if len(key) == ID.size else match_rev_nat(key)

    def details_by_number(self) -> Iterator[tuple[int, Step]]:
        """All details as they are in the maps, each with the id of its frontend."""
        for target in self.details():
            for key in target.content:
                yield decode_id(self.number_in(target, key)), (target, key)

    def line(self, target: StagedMap, key: bytes, value: bytes) -> str:
        """An entry as the dump shows it."""
        if target is self.service:
            return service_line(key, value)
        if target is self.affinity:
            return affinity_match_line(key)
        if target is self.source:
            return source_range_line(key)
        if target is self.maglev:
            return f"MAGLEV: ID={decode_id(key)} MARK={value.hex()}"
        if target is self.scale_to_zero:
            return scale_to_zero_line(key)
        return backend_line(key, value) if target is self.backend else rev_nat_line(key, value)

    def tell_meanings(self, plan: Plan) -> None:
        """Make the source ranges of an earlier version say what they mean by their frontend's flag.

        One without a frontend keeps its clients out.
        """
        untold = [key for key, value in self.source.content.items() if value == PRESENT]
        if not untold:
            return
        denies = {
            service_rev_nat(value): bool(decode_service(value).flags & ServiceFlag.SOURCE_DENY)
            for key, value in self.service.content.items()
            if key == self.master_of(key)
        }
        for key in untold:
            denied = denies.get(self.number_in(self.source, key), True)
            plan.put(Phase.DETAIL, self.source, key, encode_source_meaning(denied))

    def master_of(self, key: bytes) -> bytes:
        """The key of slot 0 of the same frontend."""
        return key[: self.slot_start] + b"\0\0" + key[self.slot_stop :]

    def prune(
        self,
        plan: Plan,
        masters: Container[bytes],
        numbers: Container[bytes],
        details: Container[Step] | None,
    ) -> int:
        """Remove all services, and what has a frontend's id, but those of `masters` and `numbers`.

        A row whose update failed is in force as it was, maybe under another id: what the remaining
        service entries lead to stays. Returns how many entries these are. With `details`, which is
        None while a row has failed, those of known frontends that are not among them go too.
        """
        in_use = set()
        for key, value in self.service.content.items():
            master = self.master_of(key)
            if master in masters:
                in_use.add(service_rev_nat(value))
            else:
                phase = Phase.MASTER_GONE if key == master else Phase.SLOT_GONE
                plan.remove(phase, self.service, key)
        held = _prune(plan, Phase.DETAIL_GONE, self.rev_nat, numbers, in_use)
        for target in self.details():
            for key in target.content:
                number = self.number_in(target, key)
                if number in numbers:
                    foreign = details is not None and (target, key) not in details
                else:
                    foreign = number not in in_use
                    held += not foreign
                if foreign:
                    plan.remove(Phase.DETAIL_GONE, target, key)
        return held

    def prune_backends(self, plan: Plan, numbers: Container[bytes]) -> int:
        """Likewise for backends, when the services were pruned.

        What a table or a match still names stays, too: one that could not be replaced is in force.
        """
        if all(key in numbers for key in self.backend.content):
            return 0  # the common case; tables are large to read
        in_use = {service_backend_id(value) for value in self.service.content.values()}
        for target in (self.affinity, self.maglev):
            for key in target.content:
                in_use.update(number for _, number in self.detail_leads_to(target, key))
        return _prune(plan, Phase.BACKEND_GONE, self.backend, numbers, in_use)

    def leads_to(self, addr: L3n4Addr) -> Iterator[Step]:
        """The backends that the slots of `addr` name as they are in the map now."""
        keys, slot = layout.service_keys(addr), 1
        while (step := self.slot_leads_to(keys.slot(slot))) is not None:
            yield step
            slot += 1

    def detail_leads_to(self, target: StagedMap, key: bytes) -> Iterator[Step]:
        """The backends that an affinity match or a Maglev table names as it is in the map now."""
        if target is self.affinity and key in target.content:
            yield self.backend, match_backend_id(key)
        elif target is self.maglev:
            table = target.raw.lookup(key) or bytes(MARK_BYTES)
            for number in set(memoryview(table)[:-MARK_BYTES].cast("I")) - {0}:
                yield self.backend, encode_id(number)

    def slot_leads_to(self, key: bytes) -> Step | None:
        value = self.service.content.get(key)
        return None if value is None else (self.backend, service_backend_id(value))


def _prune(
    plan: Plan, phase: Phase, target: StagedMap, own: Container[bytes], in_use: Container[bytes]
) -> int:
    foreign = [key for key in target.content if key not in own]
    for key in foreign:
        if key not in in_use:
            plan.remove(phase, target, key)
    return sum(key in in_use for key in foreign)


class FrontendMaps:
    """Both families; an address picks its own."""

    def __init__(self, maps: LBMaps) -> None:
        self.v4 = FamilyMaps(maps.v4, IPV4.slot)
        self.v6 = FamilyMaps(maps.v6, IPV6.slot)
        self.families = (self.v4, self.v6)

    def of(self, addr: L3n4Addr | IP) -> FamilyMaps:
        return self.v4 if addr.startswith(V4_PREFIX) else self.v6

    def family_of(self, target: StagedMap) -> FamilyMaps:
        return self.v4 if target in self.v4.all() else self.v6

    def all(self) -> Iterator[StagedMap]:
        yield from self.v4.all()
        yield from self.v6.all()

    def count_with_sources(self, details: Iterable[Collection[Step]]) -> int:
        """How many of the frontends with these details have source ranges."""
        sources = {family.source for family in self.families}
        return sum(any(target in sources for target, _ in steps) for steps in details)

    def have_unclaimed(self) -> bool:
        """Whether a map had entries when it was read that no row has asked for since."""
        return any(target.unclaimed for target in self.all())

    def load(self) -> None:
        """Read all maps; writes that were outstanding are forgotten."""
        for target in self.all():
            target.load()

    def read_back(self) -> dict[tuple[StagedMap, bytes], bytes]:
        """All entries as they are in the maps, which is what is believed from now on."""
        for target in self.all():
            target.refresh()
        return {
            (target, key): value for target in self.all() for key, value in target.content.items()
        }

    def describe(self, key: tuple[StagedMap, bytes], value: Any | None) -> tuple[str, str]:
        """Map and key, and the entry as the dump shows it."""
        target, raw_key = key
        line = "" if value is None else self.family_of(target).line(target, raw_key, value)
        return f"{target.raw.name} {raw_key.hex()}", line

    def masters(self, addresses: Iterable[L3n4Addr], wildcards: Iterable[bytes]) -> set[bytes]:
        """Keys of the master and wildcard entries; the families' keys differ in length."""
        return {layout.service_keys(addr).slot(0) for addr in addresses}.union(wildcards)

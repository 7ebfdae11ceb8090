# SPDX-License-Identifier: Apache-2.0
"""What the maps of an earlier run say: ids by address, slots, backends that were quarantined."""

from collections.abc import Container, Mapping

from bpf.maps.lb import decode_id, decode_service, decode_service_key
from bpf.maps.lb_numbers import ServiceFlag
from reconcilers.loadbalancer.frontend_entries import (
    NONE_QUARANTINED,
    backend_address,
    service_address,
)
from reconcilers.loadbalancer.id_allocator import IdAllocator
from reconcilers.maps.staged import Step
from tables.addressing import L3n4Addr
from tables.loadbalancer.frontends import Frontend

NO_STEPS: frozenset[Step] = frozenset()


class Restored:
    """`slots`: highest slot of each address found; `quarantined`: its backends held back then;
    `details`: by id, the entries that only some frontends have."""

    def __init__(self) -> None:
        self.slots: dict[L3n4Addr, int] = {}
        self.quarantined: dict[L3n4Addr, frozenset[L3n4Addr]] = {}
        self.details: dict[int, set[Step]] = {}

    def read(
        self,
        services: Mapping[bytes, bytes],
        backends: Mapping[bytes, bytes],
        rev_nats: Mapping[bytes, bytes],
        service_ids: IdAllocator[L3n4Addr],
        backend_ids: IdAllocator[L3n4Addr],
    ) -> None:
        """Take over one family's maps; ids that were handed out before are not handed out anew."""
        by_id = {decode_id(key): backend_address(value) for key, value in backends.items()}
        for number in sorted(by_id):
            backend_ids.restore(by_id[number], number)
        for key in rev_nats:
            service_ids.reserve(decode_id(key))
        for raw_key, raw_value in services.items():
            value = decode_service(raw_value)
            if not value.rev_nat:
                continue  # a wildcard entry has no id
            addr = service_address(raw_key)
            slot = decode_service_key(raw_key).slot
            self.slots[addr] = max(self.slots.get(addr, 0), slot)
            # Killed before the master entry was written, the slots know the id.
            if slot == 0 or addr not in service_ids.restored:
                service_ids.restore(addr, value.rev_nat)
            if slot and value.flags & ServiceFlag.QUARANTINED and value.backend_id in by_id:
                held = self.quarantined.get(addr, NONE_QUARANTINED)
                self.quarantined[addr] = held | {by_id[value.backend_id]}

    def quarantine(self, addr: L3n4Addr, fe: Frontend) -> frozenset[L3n4Addr]:
        """The backends of `addr` that stay quarantined; those that were probed since are free."""
        if not self.quarantined:
            return NONE_QUARANTINED
        held = self.quarantined.get(addr)
        if held is None:
            return NONE_QUARANTINED
        probed = {be.address for be in fe.backends if be.unhealthy_updated_at is not None}
        if held & probed:
            held -= probed
            if held:
                self.quarantined[addr] = held
            else:
                del self.quarantined[addr]
        return held

    def take_details(self, number: int) -> frozenset[Step]:
        """The details of a frontend that is seen again; from now on it knows them itself."""
        return frozenset(self.details.pop(number, ())) if self.details else NO_STEPS

    def forget(self, addr: L3n4Addr) -> None:
        """The address was removed: one that comes back starts anew."""
        self.slots.pop(addr, None)
        self.quarantined.pop(addr, None)

    def forget_all_but(self, taken_over: Container[L3n4Addr]) -> None:
        """After a prune nothing of the earlier run is left but what was taken over.

        A quarantine of what was taken over lasts until the backend is probed.
        """
        self.slots.clear()
        self.details.clear()
        for addr in [addr for addr in self.quarantined if addr not in taken_over]:
            del self.quarantined[addr]

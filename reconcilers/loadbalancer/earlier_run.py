# SPDX-License-Identifier: Apache-2.0
"""What an earlier run left in force, where the inputs that it came from may be unread.

A Service may have its slices in several files, of which one is broken now. Its backends of before
stay beside those that were read, until all is read; one that a row has named and names no more is
gone for certain. An address of before may belong to a Service that is unread: a row of another
Service, or of another type, does not get it meanwhile.
"""

from typing import Final

import msgspec

from bpf.maps.lb import ServiceValue, decode_backend, decode_service
from bpf.maps.lb_numbers import EntryState, FrontendType
from reconcilers.loadbalancer import frontend_entries as layout
from reconcilers.loadbalancer.frontend_maps import FrontendMaps
from reconcilers.loadbalancer.frontend_plans import FrontendPlanner
from tables.addressing import L3n4Addr
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.frontends import Frontend

# Their backends come from pods of this node, not from slices.
_OF_PODS: Final = (FrontendType.HOST_PORT, FrontendType.LOCAL_REDIRECT)
_STATES: Final = {
    int(EntryState.TERMINATING): BackendState.TERMINATING,
    int(EntryState.MAINTENANCE): BackendState.MAINTENANCE,
}


class EarlierRun:
    """Reads the maps as the planner found them: an address is asked for before it is planned."""

    def __init__(self, maps: FrontendMaps, planner: FrontendPlanner) -> None:
        self._maps = maps
        self._planner = planner
        # By frontend, those that no row has named since.
        self._unseen: dict[L3n4Addr, dict[L3n4Addr, Backend]] = {}

    def with_unseen(self, fe: Frontend) -> Frontend:
        """Return the row with the backends of before that it has not named since the start."""
        if fe.redirect_to is not None or fe.type in _OF_PODS:
            return fe
        unseen = self._unseen.get(fe.address)
        if unseen is None:
            unseen = self._unseen[fe.address] = self._backends(fe)
        if unseen:
            for be in fe.backends:
                unseen.pop(be.address, None)
        if not unseen:
            return fe
        backends = sorted((*fe.backends, *unseen.values()), key=lambda be: be.address)
        return msgspec.structs.replace(fe, backends=tuple(backends))

    def refusal(self, fe: Frontend, *, is_given: bool) -> str:
        """Return why a row may not have its address, or nothing. `is_given`: no other Service of
        its type can have it.
        """
        address = fe.address
        if address in self._planner.programmed or address not in self._planner.restored.slots:
            return ""
        master = self._master(address)
        if master is None:
            return ""
        if master.type != layout.entry_type(fe):
            return "the address is in force as another type's, whose Service may be unread"
        if not is_given and fe.type not in _OF_PODS and _is_anothers(master, fe):
            return "the address is in force as another Service's, which may be unread"
        return ""

    def forget(self) -> None:
        """All is read."""
        self._unseen.clear()

    def _backends(self, fe: Frontend) -> dict[L3n4Addr, Backend]:
        master = self._master(fe.address)
        if master is not None and _is_anothers(master, fe):
            return {}
        found = {}
        for target, number in self._maps.of(fe.address).leads_to(fe.address):
            raw = target.content.get(number)
            if raw is not None:
                address = layout.backend_address(raw)
                state = _STATES.get(decode_backend(raw).state, BackendState.ACTIVE)
                found[address] = Backend(fe.service_name, address, state=state)
        return found

    def _master(self, address: L3n4Addr) -> ServiceValue | None:
        key = layout.service_keys(address).slot(0)
        raw = self._maps.of(address).service.content.get(key)
        return None if raw is None else decode_service(raw)


def _is_anothers(master: ServiceValue, fe: Frontend) -> bool:
    """True if the entry says so; those of agents that were older say nothing."""
    return master.owner not in (0, layout.owner(fe))


__all__ = ["EarlierRun"]

# SPDX-License-Identifier: Apache-2.0
"""The backend that a flow gets, and why: ``bpf/lib/lb_packet.h`` and ``lb_choice.h`` in Python.

Looks where the programs look, in their order, and writes nothing. The answer is one backend where
something decides (a connection that exists, affinity, a position in a Maglev table), and all that
may be chosen where the choice is random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from socket import IPPROTO_TCP
from typing import Final

import msgspec

from bpf.lb.hash import lb_hash
from bpf.maps import ct, lb
from bpf.maps.lb_numbers import BY_TABLE, Algorithm, EntryState, Scope, ServiceFlag
from bpf.maps.raw import RawMap
from bpf.maps.tables import WORD
from bpf.maps.text import endpoint_text

_TCP: Final = int(IPPROTO_TCP)


class Flow(msgspec.Struct, frozen=True):
    """The first packet of a client. Addresses are 4 or 16 packed bytes, of one family."""

    client: bytes
    client_port: int
    address: bytes
    port: int
    proto: int
    #: It comes by a device of the node, not from a workload.
    outside: bool = False


class Settings(msgspec.Struct, frozen=True):
    """Constants that the programs were given before load."""

    algorithm: Algorithm = Algorithm.RANDOM
    maglev_size: int = 16381
    seed4: int = 0
    seed6: int = 0


class Outcome(StrEnum):
    BACKEND = "backend"
    RANDOM = "random"
    PASS = "pass"
    REFUSED = "refused"


class Step(msgspec.Struct, frozen=True):
    """One look-up: which map, under which key, and what that said."""

    map: str
    key: str
    said: str


class Choice(msgspec.Struct, frozen=True):
    """The answer. `reason`: what decided, or why the flow is refused."""

    outcome: Outcome
    reason: str
    rev_nat: int = 0
    #: Ids of one backend, or of all that may be chosen.
    backends: tuple[int, ...] = ()
    #: Slots whose backend is being removed: a random choice that meets one twice is refused.
    lost: int = 0
    steps: tuple[Step, ...] = ()


#: Why a flow is refused; the names of ``drop_types.h`` as ``bpf.reasons`` writes them.
NO_SERVICE, NO_BACKEND = "no service", "no backend"
CLUSTER_IP, SOURCE_RANGE = "is cluster ip", "not in src range"
LOOPBACK_ONLY = "loopback only"


class Chooser:
    """Answers for one snapshot of the maps; `explain` once for each flow."""

    def __init__(
        self,
        maps: lb.LBMaps,
        settings: Settings,
        connections: Mapping[str, RawMap] | None = None,
    ) -> None:
        """`connections`: the maps of connection tracking by name; none: all flows are new."""
        self._maps = maps
        self._settings = settings
        self._connections = connections or {}

    def explain(self, flow: Flow) -> Choice:
        """Do with a packet that opens this flow as the programs would."""
        return _Walk(self._maps.of(flow.address), self._settings, self._connections, flow).walk()

    def backend_text(self, address: bytes, number: int) -> str:
        """A backend of the family of an address, for people."""
        raw = self._maps.of(address).backend.lookup(lb.encode_id(number))
        return f"backend {number} (gone)" if raw is None else _backend_text(raw)


class _Walk:
    """One answer in the making."""

    def __init__(
        self,
        maps: lb.LBFamilyMaps,
        settings: Settings,
        connections: Mapping[str, RawMap],
        flow: Flow,
    ) -> None:
        self._maps = maps
        self._settings = settings
        self._flow = flow
        kind = "tcp" if flow.proto == _TCP else "any"
        self._connections = connections.get(f"cilia_ct{4 if len(flow.client) == 4 else 6}_{kind}")
        self._steps: list[Step] = []

    def walk(self) -> Choice:
        found = self._frontend()
        if found is None:
            return self._no_frontend()
        key, service = found
        refused = self._refusal(service)
        if refused is not None:
            return refused
        backend, reason = self._decided(key, service)
        if backend is not None:
            return self._end(Outcome.BACKEND, reason, service, (backend,))
        candidates = tuple(self._slots(key, service.count))
        if not candidates:
            return self._end(Outcome.REFUSED, NO_BACKEND, service)
        answer = self._end(Outcome.RANDOM, reason, service, candidates)
        return msgspec.structs.replace(answer, lost=service.count - len(candidates))

    def _end(
        self,
        outcome: Outcome,
        reason: str,
        service: lb.ServiceValue | None = None,
        backends: tuple[int, ...] = (),
    ) -> Choice:
        rev_nat = service.rev_nat if service is not None else 0
        return Choice(outcome, reason, rev_nat, backends, steps=tuple(self._steps))

    # -- frontend --

    def _frontend(self) -> tuple[lb.ServiceKey, lb.ServiceValue] | None:
        """The master entry and its key; inside the cluster that of the inner scope where there is
        one.
        """
        key = lb.ServiceKey(self._flow.address, self._flow.port, 0, self._flow.proto, 0)
        service = self._service(key)
        if service is None:
            return None
        if not self._flow.outside and service.flags & ServiceFlag.TWO_SCOPES:
            key = msgspec.structs.replace(key, scope=int(Scope.INTERNAL))
            service = self._service(key)
        return None if service is None else (key, service)

    def _no_frontend(self) -> Choice:
        wildcard = self._service(lb.ServiceKey(self._flow.address, 0, 0, 0, 0))
        if wildcard is None:
            return self._end(Outcome.PASS, "no frontend has this address")
        return self._end(Outcome.REFUSED, NO_SERVICE)

    def _refusal(self, service: lb.ServiceValue) -> Choice | None:
        flags, outside = ServiceFlag(service.flags), self._flow.outside
        if flags & ServiceFlag.LOOPBACK:
            return self._end(Outcome.REFUSED, LOOPBACK_ONLY, service)
        if outside and flags & ServiceFlag.NON_ROUTABLE:
            return self._end(Outcome.REFUSED, CLUSTER_IP, service)
        ranges = outside or flags & ServiceFlag.SOURCE_INSIDE
        if ranges and flags & ServiceFlag.SOURCE_RANGE and not self._let_in(service):
            return self._end(Outcome.REFUSED, SOURCE_RANGE, service)
        if flags & (ServiceFlag.L7 | ServiceFlag.DELEGATE):
            return self._end(Outcome.PASS, "left to a proxy", service)
        return None

    def _let_in(self, service: lb.ServiceValue) -> bool:
        length = 8 * len(self._flow.client)
        key = lb.encode_source_range(lb.SourceRange(service.rev_nat, self._flow.client, length))
        denies = bool(service.flags & ServiceFlag.SOURCE_DENY)
        value = self._look(self._maps.source, key, lambda raw: "in a source range")
        counts = value is not None and lb.source_range_counts(value, denies)
        return counts != denies

    # -- backend --

    def _decided(self, key: lb.ServiceKey, service: lb.ServiceValue) -> tuple[int | None, str]:
        """(the backend that is not chosen at random, what decides)."""
        held, reason = self._connection(key, service)
        if held is not None:
            return held, reason
        if service.flags & ServiceFlag.AFFINITY:
            held = self._affinity(service)
            if held is not None:
                return held, "session affinity"
        algorithm = Algorithm(service.algorithm) or self._settings.algorithm
        if algorithm in BY_TABLE and service.count:
            held = self._maglev(service)
            if held is not None:
                return held, "maglev"
        return None, "random"

    def _connection(
        self, master: lb.ServiceKey, service: lb.ServiceValue
    ) -> tuple[int | None, str]:
        """(the backend of the connection that the flow is, how it is known)."""
        if self._connections is None:
            return None, ""
        flow = self._flow
        key = ct.CtKey(
            flow.address,
            flow.client,
            flow.port,
            flow.client_port,
            flow.proto,
            ct.Direction.SERVICE,
        )
        raw = self._look(self._connections, ct.encode_key(key), _connection_text)
        if raw is None:
            return None, ""
        entry = ct.decode_entry(raw)
        number, reason = entry.backend_id, "an existing connection"
        backend = self._backend(number)
        if not _continues(entry, flow):
            return None, ""
        if entry.rev_nat != service.rev_nat or backend is None:
            number, reason = self._returned(master, service, entry), f"{reason}, found by address"
            backend = self._backend(number) if number else None
        if backend is None:
            return None, ""
        opens_tcp_on_its_way_out = (
            backend.state != EntryState.ACTIVE and flow.proto == _TCP and service.count
        )
        return (None, "") if opens_tcp_on_its_way_out else (number, reason)

    def _returned(self, master: lb.ServiceKey, service: lb.ServiceValue, entry: ct.CtEntry) -> int:
        """Find the backend of a connection whose numbers are gone: the one behind the frontend to
        which the client has a flow through it. 0: none, or its source is translated.
        """
        found: list[tuple[int, int]] = []
        for number in self._slots(master, service.count + service.qcount):
            flow = self._flow_to(number, entry)
            if flow is not None:
                found.append((flow.expires_s, number))
        return max(found)[1] if found else 0

    def _flow_to(self, number: int, service: ct.CtEntry) -> ct.CtEntry | None:
        """Return the entry behind the translation to a backend, if it is the client's."""
        assert self._connections is not None
        flow, backend = self._flow, self._backend(number)
        if backend is None:
            return None
        moved = service.flags & ct.CtFlag.OTHER_PORT
        port = service.nat_port if moved else flow.client_port
        key = ct.CtKey(
            backend.address, flow.client, backend.port, port, flow.proto, ct.Direction.EGRESS
        )
        raw = self._look(self._connections, ct.encode_key(key), _connection_text)
        if raw is None:
            return None
        entry = ct.decode_entry(raw)
        client_port = entry.nat_port if entry.flags & ct.CtFlag.OTHER_PORT else port
        named = entry.frontend(key)
        mine = entry.rev_nat == service.rev_nat
        if named is not None:
            mine = named == (flow.address, flow.port)
        return entry if mine and client_port == flow.client_port else None

    def _affinity(self, service: lb.ServiceValue) -> int | None:
        family = lb.family_of(self._flow.client)
        # An address of IPv4 takes the first half of the client's 8 bytes.
        client = self._flow.client.ljust(8, b"\0")
        key = lb.encode_affinity_key(lb.AffinityKey(client, service.rev_nat), family)
        raw = self._look(self._maps.affinity, key, _affinity_text)
        if raw is None:
            return None
        held = lb.decode_affinity(raw)
        age_ns = time.monotonic_ns() - held.last_used_ns
        if age_ns > service.affinity_timeout_s * 1_000_000_000:
            return None
        match = lb.AffinityMatch(held.backend_id, service.rev_nat)
        raw_match = lb.encode_affinity_match(match)
        if self._look(self._maps.affinity_match, raw_match, lambda raw: "may stay") is None:
            return None
        return held.backend_id if self._backend(held.backend_id) is not None else None

    def _maglev(self, service: lb.ServiceValue) -> int | None:
        table = self._maps.maglev.lookup(lb.encode_id(service.rev_nat))
        if table is None:
            self._note(self._maps.maglev, lb.encode_id(service.rev_nat), "no table")
            return None
        flow = self._flow
        seed = self._settings.seed4 if len(flow.client) == 4 else self._settings.seed6
        value = lb_hash(flow.client, flow.client_port, flow.port, flow.proto, seed)
        position = value % self._settings.maglev_size
        number = int.from_bytes(table[position * WORD : (position + 1) * WORD], "little")
        said = f"position {position} of {self._settings.maglev_size}: backend {number}"
        self._note(self._maps.maglev, lb.encode_id(service.rev_nat), said)
        return number if self._backend(number) is not None else None

    def _slots(self, key: lb.ServiceKey, count: int) -> Iterator[int]:
        for slot in range(1, count + 1):
            found = self._maps.service.lookup(_raw_key(msgspec.structs.replace(key, slot=slot)))
            number = lb.decode_service(found).backend_id if found is not None else 0
            if found is not None and self._maps.backend.lookup(lb.encode_id(number)) is not None:
                yield number

    # -- look-ups --

    def _service(self, key: lb.ServiceKey) -> lb.ServiceValue | None:
        raw = self._look(self._maps.service, _raw_key(key), _service_text)
        return None if raw is None else lb.decode_service(raw)

    def _backend(self, number: int) -> lb.BackendValue | None:
        raw = self._look(self._maps.backend, lb.encode_id(number), _backend_text)
        return None if raw is None else lb.decode_backend(raw)

    def _look(self, raw_map: RawMap, key: bytes, text: Callable[[bytes], str]) -> bytes | None:
        value = raw_map.lookup(key)
        said = "nothing" if value is None else text(value)
        self._note(raw_map, key, said)
        return value

    def _note(self, raw_map: RawMap, key: bytes, said: str) -> None:
        self._steps.append(Step(raw_map.name, key.hex(), said))


def _continues(entry: ct.CtEntry, flow: Flow) -> bool:
    """True if a packet that opens a flow belongs to a connection that is there."""
    if entry.expires_s < int(time.monotonic()):
        return False
    closing = (entry.tcp_flags | entry.reply_tcp_flags) & (ct.TCP_FIN | ct.TCP_RST)
    return flow.proto != _TCP or not closing


def _raw_key(key: lb.ServiceKey) -> bytes:
    return lb.encode_service_key(key.address, key.port, key.slot, key.proto, key.scope)


def _service_text(raw: bytes) -> str:
    service = lb.decode_service(raw)
    return f"id {service.rev_nat}, {service.count} backends, flags {service.flags:#x}"


def _backend_text(raw: bytes) -> str:
    backend = lb.decode_backend(raw)
    state = EntryState(backend.state).name.lower()
    return f"{endpoint_text(backend.address, backend.port)}, {state}"


def _connection_text(raw: bytes) -> str:
    entry = ct.decode_entry(raw)
    left = entry.expires_s - int(time.monotonic())
    return f"backend {entry.backend_id} of frontend {entry.rev_nat}, for {left} s"


def _affinity_text(raw: bytes) -> str:
    held = lb.decode_affinity(raw)
    age = (time.monotonic_ns() - held.last_used_ns) / 1e9
    return f"backend {held.backend_id}, last used {age:.0f} s ago"

# SPDX-License-Identifier: Apache-2.0
"""Programs tell that source ports are rare: entries are collected at once, and status says it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from struct import Struct

import anyio
import pytest

from bpf.layout import header
from bpf.maps import nat
from bpf.maps.fake import FakeMap
from bpf.ringbuf import Batch
from cilia.datapath.conntrack import ConntrackGC, ConntrackMaps, SweepResult
from cilia.datapath.port_pressure import PortPressure

_HEAD = Struct("=II")
_RECORD = header("nat_types.h").struct("nat_pressure")


class Buffer:
    """Records as a ring buffer gives them; a socket wakes the reader."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._wake, self._waits = socket.socketpair()
        self._waits.setblocking(False)

    def write(self, address: str, port: int, *, refused: bool) -> None:
        packed = ip_address(address).packed
        family = 4 if len(packed) == 4 else 6
        fields = (port.to_bytes(2, "big"), socket.IPPROTO_TCP, family, refused)
        self._records.append(_RECORD.pack(packed.ljust(16, b"\0"), *fields))
        self._wake.send(b"x")

    def read(self) -> Batch:
        records, self._records = self._records, []
        if records:
            self._waits.recv(1024)
        return Batch(b"".join(_HEAD.pack(len(r), 0) + r for r in records), len(records))

    def fileno(self) -> int:
        return self._waits.fileno()

    def close(self) -> None:
        self._wake.close()
        self._waits.close()


@pytest.fixture
def buffer() -> Iterator[Buffer]:
    made = Buffer()
    yield made
    made.close()


class Health:
    """The last report, and a wait for one."""

    def __init__(self) -> None:
        self.reports: list[tuple[bool, str]] = []
        self._told = anyio.Event()

    def tell(self, ok: bool, message: str) -> None:
        self.reports.append((ok, message))
        self._told.set()
        self._told = anyio.Event()

    async def until(self, ok: bool) -> str:
        with anyio.fail_after(5):
            while not self.reports or self.reports[-1][0] is not ok:
                await self._told.wait()
        return self.reports[-1][1]


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
async def test_refusal_is_told_until_ports_are_free_again(buffer: Buffer, address: str) -> None:
    health = Health()
    ports = PortPressure(buffer, health.tell, quiet_s=0.05)
    async with anyio.create_task_group() as group:
        group.start_soon(ports.run)
        await health.until(True)
        buffer.write(address, 8080, refused=True)
        message = await health.until(False)
        assert f"{address}" in message
        assert "8080/TCP" in message
        assert "--node-port-range" in message
        await health.until(True)
        group.cancel_scope.cancel()


async def test_pressure_without_a_refusal_wakes_and_is_not_told(buffer: Buffer) -> None:
    health = Health()
    ports = PortPressure(buffer, health.tell)
    async with anyio.create_task_group() as group:
        group.start_soon(ports.run)
        await health.until(True)
        buffer.write("10.0.0.1", 8080, refused=False)
        with anyio.fail_after(5):
            await ports.wait()
        group.cancel_scope.cancel()
    assert all(ok for ok, _ in health.reports)


async def test_what_expired_is_collected_when_programs_find_no_room(buffer: Buffer) -> None:
    name = nat.NAT_MAPS[0]
    translations = FakeMap(name, 16, nat.VALUE_SIZE[name], 1024)
    swept: list[SweepResult] = []
    first, second = anyio.Event(), anyio.Event()

    def done(result: SweepResult) -> None:
        swept.append(result)
        (second if first.is_set() else first).set()

    ports = PortPressure(buffer, lambda ok, message: None)
    collector = ConntrackGC(ConntrackMaps({}, {name: translations}), done=done, pressed=ports.wait)
    async with anyio.create_task_group() as group:
        group.start_soon(ports.run)
        group.start_soon(collector.run)
        with anyio.fail_after(5):
            await first.wait()
        key = nat.NatKey(bytes(4), bytes(4), 40000, 8080, 6, nat.NatDirection.IN)
        translations.update(nat.encode_key(key), nat.encode_value(nat.NatValue(bytes(4), 1)))
        buffer.write("10.0.0.1", 8080, refused=True)
        with anyio.fail_after(5):
            await second.wait()
        group.cancel_scope.cancel()
    assert [result.deleted[name] for result in swept] == [0, 1]
    assert not dict(translations.items())

# SPDX-License-Identifier: Apache-2.0
"""What a codec writes it reads back; wrong addresses are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.maps import lb
from bpf.maps.fake import FakeMap, FaultyMap

U8 = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, (1 << 64) - 1)
ADDRESS = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@given(st.builds(lb.ServiceKey, ADDRESS, U16, U16, U8, U8))
def test_service_key_reads_back(key: lb.ServiceKey) -> None:
    raw = lb.encode_service_key(key.address, key.port, key.slot, key.proto, key.scope)
    assert lb.decode_service_key(raw) == key


@given(st.builds(lb.ServiceValue, U32, U32, U32, U32, U16, U16, U16, U16, U8, U8))
def test_service_value_reads_back(value: lb.ServiceValue) -> None:
    assert lb.decode_service(lb.encode_service(value)) == value


@given(st.builds(lb.BackendValue, ADDRESS, U16, U8, U8, U32, U8, U8))
def test_backend_reads_back(value: lb.BackendValue) -> None:
    assert lb.decode_backend(lb.encode_backend(value)) == value


@given(st.builds(lb.SourceRange, U32, ADDRESS, st.integers(0, 32)))
def test_source_range_reads_back(value: lb.SourceRange) -> None:
    assert lb.decode_source_range(lb.encode_source_range(value)) == value


@given(st.builds(lb.AffinityMatch, U32, U32), st.builds(lb.Affinity, U64, U32))
def test_affinity_reads_back(match: lb.AffinityMatch, value: lb.Affinity) -> None:
    assert lb.decode_affinity_match(lb.encode_affinity_match(match)) == match
    assert lb.decode_affinity(lb.encode_affinity(value)) == value


@given(st.builds(lb.RevNatValue, ADDRESS, U16))
def test_rev_nat_reads_back(value: lb.RevNatValue) -> None:
    assert lb.decode_rev_nat(lb.encode_rev_nat(value)) == value


@given(st.builds(lb.SocketKey, U64, ADDRESS, U16))
def test_socket_key_reads_back(key: lb.SocketKey) -> None:
    assert lb.decode_socket_key(lb.encode_socket_key(key)) == key


@given(U32)
def test_id_reads_back(number: int) -> None:
    assert lb.decode_id(lb.encode_id(number)) == number


def test_address_of_a_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="4 or 16 bytes, not 5"):
        lb.encode_service_key(b"12345", 80)


def test_fake_set_has_every_map_once_and_picks_by_family() -> None:
    maps = lb.LBMaps.fake(max_entries=7)
    assert [raw.name for raw in maps.all()] == [spec.name for spec in lb.SPECS]
    assert maps.of(b"4444") is maps.v4
    assert maps.of(b"6" * 16) is maps.v6
    assert all(raw.max_entries == 7 for raw in maps.all())
    assert all(len(raw.name) <= 15 for raw in maps.all())


def test_wrapped_set_writes_through_to_the_same_maps() -> None:
    from random import Random

    maps = lb.LBMaps.fake()
    faulty = maps.wrap(lambda raw: FaultyMap(raw, 0.0, Random(1)))
    faulty.v6.rev_nat.update(lb.encode_id(5), lb.encode_rev_nat(lb.RevNatValue(b"6" * 16, 80)))
    inner = maps.v6.rev_nat
    assert isinstance(inner, FakeMap)
    assert inner.count() == 1

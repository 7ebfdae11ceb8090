# SPDX-License-Identifier: Apache-2.0
"""Longest-prefix match against a model that compares bits as text."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedb import DB, BadKey, Index, LpmIndex, RWTable, new_table
from statedb.lpm import LpmKey, bits_key, int_key, ip_key


class Net(msgspec.Struct, frozen=True):
    number: int
    prefixes: tuple[Any, ...]


def ip_bits(text: str) -> str:
    net = ipaddress.ip_network(text, strict=False)
    return f"{net.version}:" + format(int(net[0]), f"0{net.max_prefixlen}b")[: net.prefixlen]


def short_key(value: tuple[int, int]) -> LpmKey:
    return int_key(*value, width=16)


def short_bits(value: tuple[int, int]) -> str:
    number, length = value
    return format(number, "016b")[:length]


# Few bits differ, so that prefixes lie in each other.
ADDRESSES = st.one_of(
    st.builds("10.{}.0.{}/{}".format, st.integers(0, 3), st.integers(0, 3), st.integers(0, 32)),
    st.builds(
        "2001:db8::{}:{}/{}".format, st.integers(0, 3), st.integers(0, 3), st.integers(0, 128)
    ),
)
BITS = st.text("01", max_size=6)
SHORTS = st.tuples(st.sampled_from([0, 1, 0x100, 0x8000, 0xFFFF]), st.integers(0, 16))

KINDS: list[Any] = [
    pytest.param(ip_key, ip_bits, ADDRESSES, id="addresses"),
    pytest.param(bits_key, str, BITS, id="bits"),
    pytest.param(short_key, short_bits, SHORTS, id="integers"),
]
Encode = Callable[[Any], LpmKey]


@pytest.mark.parametrize(("encode", "as_bits", "values"), KINDS)
@given(data=st.data())
def test_queries_find_what_bits_as_text_say(
    encode: Encode,
    as_bits: Callable[[Any], str],
    values: st.SearchStrategy[Any],
    data: st.DataObject,
) -> None:
    lists = data.draw(st.lists(st.lists(values, max_size=3), max_size=8))
    asked = data.draw(values)
    index = LpmIndex("prefix", keys=lambda net: net.prefixes, encode=encode, unique=False)
    db = DB("lpm")
    db.validating = True
    table: RWTable[Net] = new_table(db, "nets", Index("number", key=lambda net: net.number), index)
    with db.write_txn(table) as wtxn:
        table.insert_many(wtxn, [Net(n, tuple(found)) for n, found in enumerate(lists)])
    txn = db.read_txn()

    entries = sorted({(as_bits(p), n) for n, found in enumerate(lists) for p in found})
    bits = as_bits(asked)
    covering = sorted(
        (e for e in entries if bits.startswith(e[0])), key=lambda e: (-len(e[0]), e[1])
    )
    first = table.get(txn, asked, index)
    assert (None if first is None else first.number) == (covering[0][1] if covering else None)
    assert [net.number for net in table.list(txn, asked, index)] == [n for _, n in covering]
    inside = [n for text, n in entries if text.startswith(bits)]
    assert sorted(net.number for net in table.prefix(txn, asked, index)) == sorted(inside)


@given(first=ADDRESSES, second=ADDRESSES)
def test_order_is_by_family_address_and_length(first: str, second: str) -> None:
    nets = [ipaddress.ip_network(text, strict=False) for text in (first, second)]
    plain = [(net.version, int(net[0]), net.prefixlen) for net in nets]
    assert (ip_key(first) < ip_key(second)) == (plain[0] < plain[1])


@pytest.mark.parametrize(
    ("encode", "value"),
    [
        (ip_key, "10.0.0.0/33"),
        (ip_key, "ten"),
        (bits_key, "102"),
        (bits_key, "0" * 129),
        (short_key, (0x10000, 8)),
        (short_key, (1, 17)),
        (short_key, (-1, 8)),
    ],
)
def test_what_is_no_prefix_is_refused(encode: Encode, value: Any) -> None:
    with pytest.raises(BadKey):
        encode(value)

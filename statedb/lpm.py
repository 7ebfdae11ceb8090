# SPDX-License-Identifier: Apache-2.0
"""Longest-prefix match: of all prefixes that cover an address, the most specific.

A stored key is `LpmKey = (width, value, length)`: the address width in bits, the prefix's bits
left-aligned in an integer of that width with zeros behind them, and their number. These tuples sort
by family, address and length, so that a prefix stands before all that it covers. A look-up tries
the lengths that are in use, longest first: one shift and one dictionary access each, which beats a
trie as long as few lengths are in use, and real tables use few.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from statedb.errors import BadKey
from statedb.index import Index

LpmKey: TypeAlias = tuple[int, int, int]
IPLike: TypeAlias = (
    str
    | ipaddress.IPv4Address
    | ipaddress.IPv6Address
    | ipaddress.IPv4Network
    | ipaddress.IPv6Network
    | ipaddress.IPv4Interface
    | ipaddress.IPv6Interface
)


def ip_key(value: Any) -> LpmKey:
    """Encode an address or prefix, as text or as an object of `ipaddress`; host bits are cleared.

    >>> ip_key("10.1.2.3/8")
    (32, 167772160, 8)
    >>> ip_key("::1")
    (128, 1, 128)

    Raises:
        BadKey: the value is neither.
    """
    if type(value) is tuple:
        width, bits, length = value
        return width, bits, length
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)) and not hasattr(
        value, "network"
    ):
        width = value.max_prefixlen
        return width, int(value), width
    try:
        net = ipaddress.ip_network(
            str(value) if not isinstance(value, (str, int, bytes)) else value, strict=False
        )
    except ValueError as err:
        raise BadKey(f"{value!r} is no address or prefix: {err}") from err
    return net.max_prefixlen, int(net.network_address), net.prefixlen


def bits_key(value: str) -> LpmKey:
    """Encode a text of zeros and ones, at most 128 of them.

    >>> bits_key("101") == (128, 0b101 << 125, 3)
    True

    Raises:
        BadKey: another character, or too long.
    """
    if len(value) > 128 or value.strip("01"):
        raise BadKey(f"{value!r} is no text of at most 128 zeros and ones")
    length = len(value)
    return 128, int(value or "0", 2) << (128 - length), length


def int_key(value: int, length: int, width: int) -> LpmKey:
    """Encode the `length` highest bits of an unsigned `width`-bit integer; lower bits are cleared.

    >>> int_key(0x1234, 8, 16) == (16, 0x1200, 8)
    True
    """
    if not 0 <= length <= width or value >> width or value < 0:
        raise BadKey(f"{value:#x}/{length} is no prefix of {width} bits")
    return width, value >> (width - length) << (width - length), length


def covers(prefix: LpmKey, other: LpmKey) -> bool:
    """Whether `other` lies inside `prefix` or equals it."""
    width, value, length = prefix
    if width != other[0] or length > other[2]:
        return False
    shift = width - length
    return value >> shift == other[1] >> shift


class LpmIndex(Index):
    """An index of prefixes: `get` and `list` take an address (or prefix) and find what covers it.

    `get` returns the object of the longest covering prefix, `list` those of all covering prefixes,
    longest first, `prefix` all inside the given prefix, `lower_bound` those from the given prefix
    on. `encode` turns what `key` or `keys` return, and what queries give, into an `LpmKey`.
    """

    def __init__(
        self,
        name: str,
        key: Callable[[Any], Any] | None = None,
        *,
        keys: Callable[[Any], Iterable[Any]] | None = None,
        encode: Callable[[Any], LpmKey] = ip_key,
        unique: bool = True,
        parse: Callable[[str], Any] | None = str,
    ) -> None:
        encoded = None if key is None else _encoded(key, encode)
        all_encoded = None if keys is None else _all_encoded(keys, encode)
        super().__init__(name, encoded, keys=all_encoded, unique=unique, parse=parse)
        self._encode = encode

    @property
    def is_lpm(self) -> bool:
        """Whether `get` finds the longest prefix that covers the key."""
        return True

    def encode(self, key: Any) -> Any:
        """Return the `LpmKey` of an address or prefix."""
        return self._encode(key)

    def cut(self, prefix: Any) -> Callable[[Any], Any]:
        """Return what shortens an `LpmKey` to the length of `prefix`."""
        _, _, length = prefix

        def shorten(key: LpmKey) -> LpmKey:
            width, value, _ = key
            shift = max(width - length, 0)
            return width, value >> shift << shift, length

        return shorten


def _encoded(key: Callable[[Any], Any], encode: Callable[[Any], LpmKey]) -> Callable[[Any], Any]:
    return lambda obj: encode(key(obj))


def _all_encoded(
    keys: Callable[[Any], Iterable[Any]], encode: Callable[[Any], LpmKey]
) -> Callable[[Any], Any]:
    return lambda obj: [encode(key) for key in keys(obj)]


class Lengths:
    """The prefix lengths in use, by address width, longest first.

    Lengths are added and never taken away: one that is no longer in use costs a look-up that finds
    nothing.
    """

    def __init__(self) -> None:
        self.by_width: dict[int, tuple[int, ...]] = {}

    def add(self, key: LpmKey) -> None:
        """Note that a prefix of this length is stored."""
        width, _, length = key
        known = self.by_width.get(width, ())
        if length not in known:
            self.by_width[width] = tuple(sorted((*known, length), reverse=True))

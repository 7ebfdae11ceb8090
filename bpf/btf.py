# SPDX-License-Identifier: Apache-2.0
"""A map's keys and values for people, by the types that the map carries.

A map made from an object knows its C types (BTF); ``Formatter`` prints bytes as C would write them,
field by field. Maps made without types are shown in hexadecimal. Fields of network byte order print
as the numbers that the machine sees; codecs (``bpf.maps``) are the better display where one exists.
"""

from __future__ import annotations

from typing import Any

from bpf.descriptors import Owned
from bpf.libbpf import check, ffi, lib, take_log
from bpf.maps.map import Map


class Formatter(Owned):
    """Prints entries of one map."""

    def __init__(self, of: Map) -> None:
        self._info = of.info
        self._btf: Any = None
        if self._info.btf_id and self._info.btf_value_type_id:
            out = ffi.new("struct btf **")
            check(lib.cilia_btf_open(self._info.btf_id, out), f"types of map {of.name}")
            self._btf = out[0]

    def close(self) -> None:
        """Free the types."""
        btf, self._btf = getattr(self, "_btf", None), None
        if btf is not None:
            lib.btf__free(btf)

    def key(self, raw: bytes) -> str:
        """A key as C would write it, or in hexadecimal."""
        return self._format(self._info.btf_key_type_id, raw)

    def value(self, raw: bytes) -> str:
        """A value (of one CPU) as C would write it, or in hexadecimal."""
        return self._format(self._info.btf_value_type_id, raw)

    def _format(self, type_id: int, raw: bytes) -> str:
        if self._btf is None or not type_id:
            return raw.hex()
        take_log()
        rc = lib.cilia_btf_format(self._btf, type_id, raw, len(raw))
        text = take_log()
        check(rc, "format a value")
        return text

# SPDX-License-Identifier: Apache-2.0
"""Modes of XDP; cheap to import, for tables too."""

from __future__ import annotations

from enum import StrEnum


class XdpMode(StrEnum):
    """Where an XDP program runs: in the driver, in the stack, or as the kernel chooses."""

    ANY = "any"
    NATIVE = "native"
    GENERIC = "generic"

    @property
    def flags(self) -> int:
        """Return the kernel's flags for a link (``XDP_FLAGS_*_MODE``)."""
        return _FLAGS[self]


_FLAGS = {XdpMode.ANY: 0, XdpMode.GENERIC: 1 << 1, XdpMode.NATIVE: 1 << 2}

# SPDX-License-Identifier: Apache-2.0
"""The switch between us and another proxy of Services: codec of ``bpf/lib/switch_types.h``.

It is in the kernel, so it stays as it is when the agent is restarted or killed.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from bpf.layout import header
from bpf.maps.fake import FakeMap
from bpf.maps.raw import RawMap

__all__ = ["NAME", "Switch", "SwitchState"]

NAME: Final = "cilia_switch"
_HEADER: Final = header("switch_types.h")
_SWITCH: Final = _HEADER.numbers("SWITCH_")
_VALUE: Final = _HEADER.struct("switch_state")
_KEY: Final = bytes(4)


class SwitchState(IntEnum):
    """``SWITCH_*``: who has connections that begin now; known ones go on in every state."""

    SERVE = _SWITCH["SERVE"]
    #: New ones pass untranslated, to whoever is next.
    HAND_BACK = _SWITCH["HAND_BACK"]
    #: New ones are ours; TCP that began without us is left to others.
    TAKE_OVER = _SWITCH["TAKE_OVER"]


class Switch:
    """The one entry."""

    def __init__(self, raw: RawMap) -> None:
        self._raw = raw

    @property
    def state(self) -> SwitchState:
        raw = self._raw.lookup(_KEY)
        return SwitchState(_VALUE.unpack(raw or bytes(_VALUE.size))[0])

    @state.setter
    def state(self, state: SwitchState) -> None:
        self._raw.update(_KEY, _VALUE.pack(state))

    def close(self) -> None:
        """Close a kernel map."""
        getattr(self._raw, "close", lambda: None)()

    @classmethod
    def fake(cls) -> Switch:
        """In memory."""
        return cls(FakeMap(NAME, len(_KEY), _VALUE.size, 1))

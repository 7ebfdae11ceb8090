# SPDX-License-Identifier: Apache-2.0
"""Conditions: the `[name]`, `[!name]` and `[name:suffix]` guards of a line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilia.script.errors import UnknownName

if TYPE_CHECKING:
    from cilia.script.state import State
    from cilia.script.tokens import Guard


@dataclass(frozen=True, slots=True)
class Condition:
    """A named condition; `holds` is given the suffix, which only a `prefix` condition has."""

    name: str
    summary: str
    holds: Callable[[State, str], bool]
    prefix: bool = False


PRIVILEGED = Condition(
    "privileged", "the script runs as root", lambda state, suffix: os.geteuid() == 0
)


def all_hold(state: State, guards: Iterable[Guard]) -> bool:
    """Whether a line with these guards runs; stops at the first that says no.

    Raises: UnknownName for a condition that does not exist or is used in the other form.
    """
    return all(_holds(state, guard) == guard.wanted for guard in guards)


def _holds(state: State, guard: Guard) -> bool:
    name, colon, suffix = guard.tag.partition(":")
    condition = state.conditions.get(name)
    if condition is None:
        raise UnknownName(f"unknown condition {name!r}")
    if bool(colon) != condition.prefix:
        need = "needs a suffix" if condition.prefix else "takes no suffix"
        raise UnknownName(f"condition {name!r} {need}")
    return condition.holds(state, suffix)

# SPDX-License-Identifier: Apache-2.0
"""Script commands on a key-value store in memory, one for each script: `kvstore/*`.

Nothing reads it yet: it is where scripts put what other clusters would have written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cilia.script.commands import Command, Flag, Output
from cilia.script.errors import CommandFailed
from cilia.script.state import State

__all__ = ["kvstore_commands"]

_FORMAT = Flag("output", "o", "str", "plain", "plain or json")


def kvstore_commands(store: dict[str, str]) -> tuple[Command, ...]:
    """They share the store, which outlives the application that a script recreates."""

    def update(state: State, flags: dict[str, Any], args: list[str]) -> None:
        if len(args) != 2:
            raise CommandFailed("expected KEY FILE")
        store[args[0]] = state.read_text(args[1])

    def delete(state: State, flags: dict[str, Any], args: list[str]) -> None:
        if len(args) != 1:
            raise CommandFailed("expected KEY")
        if store.pop(args[0], None) is None:
            raise CommandFailed(f"no such key: {args[0]}")

    def list_(state: State, flags: dict[str, Any], args: list[str]) -> Output | None:
        if not 1 <= len(args) <= 2:
            raise CommandFailed("expected PREFIX [FILE]")
        if flags["output"] not in ("plain", "json"):
            raise CommandFailed(f"no such format: {flags['output']}")
        found = {key: store[key] for key in sorted(store) if key.startswith(args[0])}
        text = "".join(_lines(found, as_json=flags["output"] == "json"))
        if len(args) == 1:
            return Output(text)
        state.write_text(args[1], text)
        return None

    return (
        Command("kvstore/update", "set a key to what a file says", update, "KEY FILE"),
        Command("kvstore/delete", "remove a key", delete, "KEY"),
        Command(
            "kvstore/list",
            "print keys that begin so, and their values",
            list_,
            "PREFIX [FILE]",
            flags=(_FORMAT,),
        ),
    )


def _lines(found: dict[str, str], *, as_json: bool) -> Iterator[str]:
    """A comment with the key above each value; JSON is set out so that it can be compared."""
    for key, value in found.items():
        yield f"# {key}\n"
        try:
            shown = json.dumps(json.loads(value), indent=2) if as_json else value
        except ValueError as error:
            raise CommandFailed(f"{key} is not JSON: {error}") from None
        yield shown.rstrip("\n") + "\n"

# SPDX-License-Identifier: Apache-2.0
"""Script commands on the object tracker: `k8s/add`, `k8s/update`, `k8s/delete` and their kin."""

from __future__ import annotations

from typing import Any

from cilia.k8s.tracker import Tracker
from cilia.script.commands import Command, Flag, Output
from cilia.script.errors import CommandFailed
from cilia.script.state import State

__all__ = ["k8s_commands"]

Flags = dict[str, Any]

_OUT = Flag("out", "o", "str", "", "write to this file")
_SHOW = Flag("show-redacted", "", "strings", (), "fields to show: resource-version, uid")


def k8s_commands(tracker: Tracker) -> tuple[Command, ...]:
    """The commands over one tracker."""

    def add(state: State, flags: Flags, args: list[str]) -> None:
        for data in _files(state, args):
            tracker.add(data)

    def update(state: State, flags: Flags, args: list[str]) -> None:
        for data in _files(state, args):
            tracker.update(data, strict=flags["strict"])

    def delete(state: State, flags: Flags, args: list[str]) -> None:
        for data in _files(state, args):
            tracker.delete(data)

    def get(state: State, flags: Flags, args: list[str]) -> Output:
        resource, name = _exactly(args, "RESOURCE", "NAMESPACE/NAME")
        return _deliver(state, flags, tracker.get(resource, name, flags["show-redacted"]))

    def list_(state: State, flags: Flags, args: list[str]) -> Output:
        resource, namespace = _exactly(args, "RESOURCE", "NAMESPACE")
        text = tracker.list_objects(resource, namespace, flags["show-redacted"])
        return _deliver(state, flags, text)

    def resync(state: State, flags: Flags, args: list[str]) -> None:
        if not args:
            raise CommandFailed("expected RESOURCE [FILE...]")
        tracker.resync(args[0], _files(state, args[1:], least=0))

    def summary(state: State, flags: Flags, args: list[str]) -> Output | None:
        text = tracker.summary()
        if not args:
            return Output(text)
        state.write_text(args[0], text)
        return None

    def resources(state: State, flags: Flags, args: list[str]) -> Output:
        return Output("".join(f"{name}\n" for name in tracker.resources()))

    strict = Flag("strict", help="fail when the resourceVersion is another one")
    return (
        Command("k8s/add", "add or replace objects", add, "FILE..."),
        Command("k8s/update", "replace objects that exist", update, "FILE...", flags=(strict,)),
        Command("k8s/delete", "delete objects", delete, "FILE..."),
        Command("k8s/get", "print an object", get, "RESOURCE NAMESPACE/NAME", flags=(_OUT, _SHOW)),
        Command("k8s/list", "print objects", list_, "RESOURCE NAMESPACE", flags=(_OUT, _SHOW)),
        Command("k8s/resync", "replace all of a resource", resync, "RESOURCE [FILE...]"),
        Command("k8s/summary", "count the objects", summary, "[FILE]"),
        Command("k8s/resources", "list the known resources", resources),
    )


def _files(state: State, names: list[str], least: int = 1) -> list[bytes]:
    """All contents before the first is used, so that a missing file changes nothing."""
    if len(names) < least:
        raise CommandFailed("expected FILE...")
    return [state.read_text(name).encode() for name in names]


def _exactly(args: list[str], *names: str) -> list[str]:
    if len(args) != len(names):
        raise CommandFailed(f"expected {' '.join(names)}")
    return args


def _deliver(state: State, flags: Flags, text: str) -> Output:
    if not flags["out"]:
        return Output(text)
    state.write_text(flags["out"], text)
    return Output()

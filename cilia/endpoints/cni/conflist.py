# SPDX-License-Identifier: Apache-2.0
"""The list that makes cilia the network of a node's containers, and the plugin itself, on disk.

A container runtime takes the first list of a directory, in the order of names; a node is ready as
soon as there is one. So it is written last, whole, and only if it changes: runtimes read it again
after each write. What other networks have there is renamed, never deleted, and given back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Any, Final

import msgspec
import structlog

from cilia.endpoints.cni.forwarder import NAME, built
from cilia.endpoints.cni.results import VERSIONS
from cilia.linux.records import replace_file
from cilia.regular_files import read_regular

__all__ = [
    "FILE",
    "PORTMAP",
    "ConflistError",
    "custom",
    "give_back",
    "install_program",
    "others",
    "remove",
    "rendered",
    "require_program",
    "set_aside",
    "spliced",
    "write",
]

#: The customary name; it comes before those of most other networks.
FILE: Final = "05-cilia.conflist"
#: Added to the names of others' files; the field's word, which its tools know.
ASIDE: Final = ".cilium_bak"
#: Names that runtimes read.
SUFFIXES: Final = (".conf", ".conflist", ".json")
#: The version that all runtimes know, and those that newer ones may choose from.
VERSION: Final = "1.0.0"
NEWER: Final = ("1.0.0", "1.1.0")
#: The plugin for host ports, as it is behind ours in the list.
PORTMAP: Final = {"type": "portmap", "capabilities": {"portMappings": True}}

log = structlog.get_logger("cni")


class ConflistError(Exception):
    """A list that somebody else wrote cannot be used; the text says why."""


def rendered(
    socket: Path, *, name: str = "cilia", chained: Sequence[dict[str, Any]] = (), **fields: Any
) -> bytes:
    """Return the list of a network whose agent listens on the socket.

    `chained` are plugins that come after ours, `fields` further ones of our own. A runtime asks all
    plugins in one version: with others there is only the one that all of them know.
    """
    ours = {"type": NAME, "socket-path": str(socket), **fields}
    newer = {} if chained else {"cniVersions": list(NEWER)}
    conflist = {"cniVersion": VERSION, **newer, "name": name, "plugins": [ours, *chained]}
    return json.dumps(conflist, indent=2).encode() + b"\n"


def spliced(directory: Path, network: str, socket: Path, mode: str) -> bytes:
    """Return the list of another network with our plugin behind its own ones.

    A list that is in force counts before one that was set aside.

    Raises:
        ConflistError: there is none, or not of a version that we know.
        OSError: the directory cannot be read.
    """
    for path in (*others(directory), *_aside(directory)):
        form = _network_list(path)
        if form is None or form.get("name") != network:
            continue
        if form.get("cniVersion") not in VERSIONS:
            raise ConflistError(
                f"{path} has cniVersion {form.get('cniVersion')!r}: cilia-cni knows"
                f" {', '.join(VERSIONS)}"
            )
        ours = {"type": NAME, "socket-path": str(socket), "chaining-mode": mode}
        before = [plugin for plugin in form["plugins"] if plugin["type"] != NAME]
        return json.dumps({**form, "plugins": [*before, ours]}, indent=2).encode() + b"\n"
    raise ConflistError(
        f"{directory} has no list of the network {network} (--cni-chaining-target): its plugin is"
        " to be installed"
    )


def _network_list(path: Path) -> dict[str, Any] | None:
    """Return a list; a file of one plugin as a list of one. None for what is neither."""
    try:
        form = msgspec.json.decode(read_regular(path))
        if "plugins" not in form:
            version, name = form.get("cniVersion"), form.get("name")
            form = {"cniVersion": version, "name": name, "plugins": [form]}
        complete = all(isinstance(plugin["type"], str) for plugin in form["plugins"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        log.warning("a network's list cannot be read", path=str(path), error=str(error))
        return None
    return form if complete else None


def custom(path: Path) -> bytes:
    """Return a list that somebody wrote for us (`read-cni-conf`), as it is.

    Raises:
        ConflistError: it is no list with our plugin in it.
        OSError: it cannot be read.
    """
    text = read_regular(path)
    try:
        form = msgspec.json.decode(text)
        types = [plugin["type"] for plugin in form["plugins"]]
        complete = isinstance(form["name"], str) and isinstance(form["cniVersion"], str)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConflistError(f"{path} is no JSON: {error}") from None
    except (KeyError, TypeError):
        complete = False
    if not complete:
        raise ConflistError(f"{path} is no list: it needs cniVersion, name and plugins with a type")
    if NAME not in types:
        raise ConflistError(f"{path} has no plugin of type {NAME}: containers would not get to us")
    return text


def require_program(directory: Path, name: str) -> None:
    """Raises: ConflistError if a runtime would not find a plugin that the list names."""
    if not os.access(directory / name, os.X_OK):
        raise ConflistError(f"{directory} has no plugin {name}: no list is written that names it")


def write(directory: Path, content: bytes) -> bool:
    """Put the list in force; false if it is already.

    Raises: OSError; what was there is in force then.
    """
    path = directory / FILE
    if _content(path) == content:
        return False
    replace_file(path, content, durable=True)
    return True


def remove(directory: Path) -> bool:
    """Take the list away; false if there is none. Raises: OSError."""
    try:
        (directory / FILE).unlink()
    except FileNotFoundError:
        return False
    return True


def others(directory: Path) -> list[Path]:
    """Return what runtimes read beside our list, in the order of names."""
    found = (path for path in directory.iterdir() if path.suffix in SUFFIXES)
    return sorted(path for path in found if path.name != FILE and _is_file(path))


def set_aside(directory: Path) -> list[Path]:
    """Rename what others have there, and return the new names. An older one of the same name is
    replaced: the file that was in force is the one to give back.

    Raises: OSError.
    """
    aside: list[Path] = []
    for path in others(directory):
        with suppress(FileNotFoundError):  # its owner was faster
            aside.append(path.replace(path.with_name(path.name + ASIDE)))
    return aside


def give_back(directory: Path) -> list[Path]:
    """Rename what was set aside back, and return the names. A file that is there again by now is
    left alone, with a warning.

    Raises: OSError.
    """
    back: list[Path] = []
    for path in _aside(directory):
        former = path.with_name(path.name.removesuffix(ASIDE))
        try:
            os.link(path, former, follow_symlinks=False)
        except FileExistsError:
            log.warning("a network's list is there again", path=str(former), kept=str(path))
            continue
        path.unlink()
        back.append(former)
    return back


def _aside(directory: Path) -> list[Path]:
    """Return what was set aside, in the order of names."""
    return [
        path
        for path in sorted(directory.glob(f"*{ASIDE}"))
        if Path(path.name.removesuffix(ASIDE)).suffix in SUFFIXES and _is_file(path)
    ]


def install_program(directory: Path) -> bool:
    """Put `cilia-cni` into a runtime's directory of plugins; false if it is there already. One that
    runs meanwhile goes on.

    Raises:
        ForwarderError: this installation does not have it.
        OSError: what was there is there still.
    """
    program, content = directory / NAME, built().read_bytes()
    if _content(program) == content and os.access(program, os.X_OK):
        return False
    replace_file(program, content, durable=True, mode=0o755)
    return True


def _content(path: Path) -> bytes | None:
    """Return what is in a file; None if it cannot be read, so that it is written."""
    try:
        return path.read_bytes() if _is_file(path) and not path.is_symlink() else None
    except OSError:
        return None


def _is_file(path: Path) -> bool:
    """True for a file, or a link: what it leads to is not asked."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return S_ISREG(mode) or S_ISLNK(mode)

# SPDX-License-Identifier: Apache-2.0
"""Compiled modules: which ones mypyc compiles, and how a checkout uses them without going stale.

The same source runs compiled and interpreted. A wheel carries the compiled modules beside their
sources. A checkout has them under `build/native`, made by `install/setup.sh`, with the digests of
all sources that they were made from: a group of modules is used only while every digest is that of
the file as it is now, so that an edited file is always what runs. `CILIA_COMPILED=0` runs the
sources whatever is there, `CILIA_COMPILED=1` refuses to.

Modules with coroutines, weak references or msgspec structs stay interpreted. Each package has its
own group beside its modules; this is the one of statedb.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, MutableSequence
from hashlib import blake2b
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "build" / "native"
MANIFEST = "manifest.json"
SUFFIX = EXTENSION_SUFFIXES[0]  # names the interpreter's version and platform


class Group(NamedTuple):
    """Modules that are compiled together, so that calls between them are direct."""

    name: str
    modules: tuple[str, ...]

    @property
    def home(self) -> Path:
        """Where a checkout keeps it."""
        return NATIVE / self.name

    @property
    def shared(self) -> str:
        """The module that has the code; the others lead to it."""
        return f"{self.name}__mypyc"


STATEDB = Group(
    "statedb",
    (
        "statedb/_row.py",
        "statedb/_tree.py",
        "statedb/_opened.py",
        "statedb/_watchers.py",
        "statedb/_views.py",
        "statedb/_secondary.py",
        "statedb/_store.py",
        "statedb/index.py",
        "statedb/lpm.py",
        "statedb/graveyard.py",
        "statedb/_commits.py",
        "statedb/txn.py",
        "statedb/changes.py",
        "statedb/table.py",
        "statedb/db.py",
    ),
)


class StaleError(ImportError):
    """Compiled modules were demanded, and there are none of the sources as they are."""


def ext_modules(group: Group, sources_dir: str = "build", *, optimise: int = 3) -> list[Any]:
    """Return the extension modules for setuptools; C sources go below `sources_dir`.

    Needs mypy and a C compiler; file names count from the root of the project.
    """
    from mypyc.build import mypycify

    modules = list(
        mypycify(
            ["--strict", *group.modules],
            opt_level=str(optimise),
            group_name=group.name,
            target_dir=sources_dir,
        )
    )
    for module in modules:
        module.extra_compile_args += ["-include", str(Path(__file__).with_name("_notrash.h"))]
    return modules


def prefer(group: Group, package: str, path: MutableSequence[str]) -> None:
    """Have a package find its compiled modules before their sources; `path` is its `__path__`.

    To be called before anything of the package is imported.

    Raises:
        StaleError: with `CILIA_COMPILED=1`, when there are none that fit.
    """
    asked = os.environ.get("CILIA_COMPILED", "")
    if asked == "0" or _beside_sources(group):
        return
    if is_current(group):
        _load_shared(group)
        path.insert(0, str(group.home.joinpath(*package.split("."))))
    elif asked == "1":
        raise StaleError(f"{group.name}: no compiled modules of the sources as they are")


def is_current(group: Group) -> bool:
    """Whether a checkout has the group, made of the sources as they are."""
    if group.shared in sys.modules:
        return True
    try:
        manifest = json.loads((group.home / MANIFEST).read_bytes())
        return bool(
            manifest["suffix"] == SUFFIX and digests(manifest["sources"]) == manifest["sources"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def digests(names: Iterable[str]) -> dict[str, str]:
    """Digest of each file; names count from the root. Raises: OSError."""
    return {name: blake2b((ROOT / name).read_bytes(), digest_size=16).hexdigest() for name in names}


def _beside_sources(group: Group) -> bool:
    """As in a wheel."""
    return (ROOT / (group.modules[0].removesuffix(".py") + SUFFIX)).exists()


def _load_shared(group: Group) -> None:
    """Load the module with the code under the top-level name that the others import."""
    if group.shared in sys.modules:
        return
    file = str(group.home / (group.shared + SUFFIX))
    spec = spec_from_file_location(
        group.shared, file, loader=ExtensionFileLoader(group.shared, file)
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[group.shared] = module
    spec.loader.exec_module(module)

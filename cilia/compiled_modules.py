# SPDX-License-Identifier: Apache-2.0
"""Compiled modules: which ones mypyc compiles, and how a checkout uses them without going stale.

The same source runs compiled and interpreted, and knows nothing of it. A wheel carries the compiled
modules beside their sources, where Python finds them first. A checkout has them under
`build/native`, with the digests of all sources that they were made from. There a finder, which
`install/setup.sh` puts into the virtual environment, gives a compiled module for a source while
every digest of its group is that of the file as it is now, so that an edited file is always what
runs. `CILIA_COMPILED=0` runs the sources whatever is there, `CILIA_COMPILED=1` refuses to.

Modules with weak references or much that is asynchronous stay interpreted. Each package has the
list of its own beside its modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# Each process of the environment imports this: what few of them need is imported where it is used.

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "build" / "native"
MANIFEST = "manifest.json"
SUFFIX = EXTENSION_SUFFIXES[0]  # names the interpreter's version and platform
HOOK = "cilia_compiled.pth"

# Groups, with the files that list their modules.
LISTS = {
    "statedb": "statedb/compiled.py",
    "reconcilers": "reconcilers/compiled.py",
    "loadbalancer": "cilia/loadbalancer/services/compiled.py",
    "k8s": "cilia/k8s/compiled.py",
}
PACKAGES = frozenset({"statedb", "reconcilers", "cilia"})

# mypyc gives a generic class a place for a dictionary, although `Generic` has none. Python 3.11
# looks up the methods of an object that may have one at each call, which costs 10 ns: too much for
# these. Their objects have no attributes but those of the class.
WITHOUT_DICT = "Table|RWTable|ChangeIterator"


class StaleError(ImportError):
    """Compiled modules were demanded, and there are none of the sources as they are."""


class Group(NamedTuple):
    """Modules that are compiled together, so that calls between them are direct."""

    name: str
    modules: tuple[str, ...]

    @property
    def home(self) -> Path:
        """Where a checkout keeps it."""
        return NATIVE / self.name

    @property
    def listed_in(self) -> str:
        """The file that lists its modules."""
        return LISTS[self.name]

    @property
    def shared(self) -> str:
        """The module that has the code; the others lead to it."""
        return f"{self.name}__mypyc"

    @property
    def names(self) -> list[str]:
        return [module.removesuffix(".py").replace("/", ".") for module in self.modules]


def groups() -> list[Group]:
    """All that is compiled. The lists are read without their packages."""
    from runpy import run_path

    return [Group(name, run_path(str(ROOT / file))["MODULES"]) for name, file in LISTS.items()]


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
        for source in module.sources:
            _drop_dict(Path(source))
        module.extra_compile_args += ["-include", str(ROOT / "statedb" / "_notrash.h")]
    return modules


def _drop_dict(source: Path) -> None:
    """Take the dictionary from the types `WITHOUT_DICT` of a generated C file."""
    import re

    place = rf"\.tp_dictoffset = sizeof\(statedb___\w+___({WITHOUT_DICT})Object\),"
    text = source.read_text()
    if (changed := re.sub(place, "", text)) != text:
        source.write_text(changed)


def is_current(group: Group) -> bool:
    """True if a checkout has the group, made of the sources as they are."""
    import json

    try:
        manifest = json.loads((group.home / MANIFEST).read_bytes())
        made_of = manifest["sources"]
        return bool(
            manifest["suffix"] == SUFFIX
            and group.listed_in in made_of
            and digests(made_of) == made_of
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def digests(names: Iterable[str]) -> dict[str, str]:
    """Digest of each file; names count from the root. Raises: OSError."""
    from hashlib import blake2b

    return {name: blake2b((ROOT / name).read_bytes(), digest_size=16).hexdigest() for name in names}


class Finder:
    """Finds compiled modules of this checkout's packages. A group is looked at once a process, when
    the first of its modules is imported: all are compiled, or all are sources."""

    root = ROOT

    def __init__(self, *, demanded: bool) -> None:
        self._demanded = demanded
        self._usable: dict[str, bool] = {}

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {name: group for group in groups() for name in group.names}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is, None to have the others find it. Raises: StaleError."""
        if self._usable.get(name.removesuffix("__mypyc")):
            return _spec(name, NATIVE / name.removesuffix("__mypyc") / (name + SUFFIX))
        if path is None or name.partition(".")[0] not in PACKAGES:
            return None
        group = self._by_name.get(name)
        relative = Path(*name.split("."))
        if group is None or str(ROOT / relative.parent) not in path or not self._use(group):
            return None
        return _spec(name, group.home / relative.with_name(relative.name + SUFFIX))

    def _use(self, group: Group) -> bool:
        usable = self._usable.get(group.name)
        if usable is None:
            usable = self._usable[group.name] = is_current(group)
            if self._demanded and not usable:
                raise StaleError(f"{group.name}: no compiled modules of the sources as they are")
        return usable


def _spec(name: str, file: Path) -> ModuleSpec | None:
    return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))


def install() -> None:
    """Have this process use what is compiled, as `CILIA_COMPILED` says."""
    asked = os.environ.get("CILIA_COMPILED", "")
    # A virtual environment reads its hooks twice.
    there = any(getattr(finder, "root", None) == ROOT for finder in sys.meta_path)
    if asked != "0" and not there:
        sys.meta_path.insert(0, Finder(demanded=asked == "1"))


def put_hook() -> None:
    """Have each process of this virtual environment call `install`."""
    import sysconfig

    load = (
        "import importlib.util as util; "
        f"spec = util.spec_from_file_location('compiled_modules', {str(Path(__file__))!r}); "
        "module = util.module_from_spec(spec); spec.loader.exec_module(module); module.install()\n"
    )
    Path(sysconfig.get_path("purelib"), HOOK).write_text(load)


if __name__ == "__main__":
    put_hook()

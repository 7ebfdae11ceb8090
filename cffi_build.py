# SPDX-License-Identifier: Apache-2.0
"""Build of the compiled parts: the libbpf binding, compiled Python modules, BPF objects.

This is the in-tree PEP 517 backend of ``pyproject.toml``: it is ``setuptools.build_meta`` with one
step before each build that writes the C source of ``bpf._libbpf``, and a class that setuptools
calls to compile extensions. One header is read by both worlds: ``bpf/lib/*_types.h`` is compiled
into BPF programs and is part of the cdef here, so that the layout of every map key and value exists
once.

What can be left out: ``CILIA_BUILD_OBJECTS=0`` builds a wheel without prebuilt BPF objects (its
user needs a clang), ``CILIA_BUILD_COMPILED=0`` one without compiled Python modules,
``CILIA_BUILD_FORWARDER=0`` one without the CNI plugin (its user cannot be a pod network).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cffi
from setuptools import build_meta
from setuptools.build_meta import (  # the hooks that need no step of ours
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build_ext import build_ext
from setuptools.dist import Distribution

if TYPE_CHECKING:
    from cilia.compiled_modules import Group

__all__ = [
    "BuildExtensions",
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent
BPF = ROOT / "bpf"
BINDING_SOURCE = BPF / "_libbpf.c"

#: Kernel integer types of the shared headers; the cdef language has no __u32 of its own. Those of
#: 64 bits are `long long` as in <asm-generic/int-ll64.h>; `uint64_t` is `long`, and gcc 14 refuses
#: a pointer to the one for a pointer to the other.
PROLOGUE = """
typedef uint8_t __u8;    typedef int8_t __s8;
typedef uint16_t __u16;  typedef int16_t __s16;
typedef uint32_t __u32;  typedef int32_t __s32;
typedef unsigned long long __u64; typedef long long __s64;
typedef uint16_t __be16; typedef uint32_t __be32; typedef unsigned long long __be64;
"""

#: What a wheel's build needs besides pyproject.toml's list: the compiler of statedb.
COMPILER = "mypy[mypyc]"


def shared_headers() -> list[Path]:
    """The headers that BPF and Python share, in a stable order."""
    return sorted((BPF / "lib").glob("*_types.h"))


def header_cdef(header: Path) -> str:
    """Return a shared header as cdef: without what the cdef language refuses.

    That is ``#pragma once`` and macros. Of numbers that are listed in a macro it has the names; the
    C compiler tells their values.
    """
    text = header.read_text()
    listed = re.findall(r"^\t\w+\((\w+), ", text, re.MULTILINE)
    macros = r"#define \w+\((?:.*\\\n)*.*\n"
    enums = r"enum \w+ {\n\t\w+\(.*\n};\n"
    text = re.sub(f"^(#pragma once\n|{macros}|{enums})", "", text, flags=re.MULTILINE)
    return text + "".join(f"#define {name} ...\n" for name in listed)


def binding() -> cffi.FFI:
    """The builder of ``bpf._libbpf``."""
    ffi = cffi.FFI()
    ffi.cdef(PROLOGUE)
    for header in shared_headers():
        ffi.cdef(header_cdef(header))
    ffi.cdef((BPF / "binding.cdef").read_text())
    includes = "".join(f'#include "lib/{header.name}"\n' for header in shared_headers())
    source = "#include <linux/types.h>\n" + includes + (BPF / "binding.c").read_text()
    ffi.set_source("bpf._libbpf", source, libraries=["bpf"], include_dirs=["bpf"])
    return ffi


def emit_binding() -> None:
    """Write ``bpf/_libbpf.c``, and leave it alone when nothing changed so that nothing is compiled
    again.
    """
    BINDING_SOURCE.parent.mkdir(exist_ok=True)
    binding().emit_c_code(str(BINDING_SOURCE))


def wanted(switch: str) -> bool:
    """Whether an optional part of the wheel was not switched off."""
    return os.environ.get(switch) != "0"


def compiled_extensions() -> list[Any]:
    """The Python modules that are compiled into a wheel; each also runs interpreted."""
    if not wanted("CILIA_BUILD_COMPILED"):
        return []
    with importable_root():
        from cilia.compiled_modules import ext_modules, groups

        return [module for group in groups() for module in ext_modules(group)]


def build_native(names: Sequence[str]) -> int:
    """Compile the groups of these names (all, if there are none) into `build/native`, each in a
    process of its own; returns how many could not be compiled. What is current is left alone.
    """
    with importable_root():
        from cilia.compiled_modules import groups, is_current

        stale = [group for group in groups() if not is_current(group)]
    if names:
        for group in stale:
            if group.name in names:
                compile_group(group)
        return 0
    if stale:
        print(f"setup: compiling {' and '.join(group.name for group in stale)}", flush=True)
    builds = [
        subprocess.Popen([sys.executable, __file__, "native", group.name], cwd=ROOT)
        for group in stale
    ]
    return sum(build.wait() != 0 for build in builds)


def compile_group(group: Group) -> None:
    """Compile one group, then put it and the digests of its sources in place in one step.

    Optimised for the time it takes: more costs the C compiler twice as long.
    """
    with importable_root():
        from cilia.compiled_modules import MANIFEST, SUFFIX, digests, ext_modules

        sources = digests(sources_of(group))  # before compiling: an edit meanwhile makes it stale
        fresh = group.home.with_name(f"{group.name}.{os.getpid()}")
        (fresh / "c").mkdir(parents=True)
        try:
            setup = Distribution(
                {
                    "name": group.name,
                    "ext_modules": ext_modules(group, str(fresh / "c"), optimise=1),
                }
            )
            build = setup.get_command_obj("build_ext")
            build.build_lib, build.build_temp = str(fresh), str(fresh / "c")
            build.ensure_finalized()
            build.run()
            shutil.rmtree(fresh / "c")
            manifest = {"suffix": SUFFIX, "sources": sources}
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))
            shutil.rmtree(group.home, ignore_errors=True)
            fresh.rename(group.home)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def sources_of(group: Group) -> list[str]:
    """All files of the project that the group is made of: its list, and what its modules import,
    of which constants are compiled in.
    """
    modules = [name.removesuffix(".py").replace("/", ".") for name in group.modules]
    listing = (
        f"import sys, {', '.join(modules)}\n"
        "for module in [*sys.modules.values()]:\n print(getattr(module, '__file__', None) or '')"
    )
    files = subprocess.run(
        [sys.executable, "-c", listing],
        cwd=ROOT,
        env=os.environ | {"CILIA_COMPILED": "0"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    found = [Path(file).relative_to(ROOT) for file in files if Path(file).is_relative_to(ROOT)]
    ours = [str(file) for file in found if file.suffix == ".py" and file.parts[0] != ".venv"]
    return sorted({*ours, "statedb/_notrash.h", group.listed_in})


@contextmanager
def importable_root() -> Iterator[None]:
    """The project's own packages can be imported in the block; a backend is run from elsewhere."""
    sys.path.insert(0, str(ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT))


def build_objects() -> None:
    """Compile every BPF object into ``bpf/objects``, so that a node needs no clang."""
    if not wanted("CILIA_BUILD_OBJECTS"):
        return
    with importable_root():
        from bpf.compile import build_prebuilt
    build_prebuilt()


def build_forwarder() -> None:
    """Compile the CNI plugin, a static program, into the package that carries it."""
    if not wanted("CILIA_BUILD_FORWARDER"):
        return
    with importable_root():
        from cilia.endpoints.cni.forwarder import ForwarderError, build
    try:
        build()
    except ForwarderError as error:
        sys.exit(f"{error}; or leave it out by CILIA_BUILD_FORWARDER=0")


class BuildExtensions(build_ext):
    """``build_ext`` that knows the extensions of this module next to those of pyproject.toml."""

    def finalize_options(self) -> None:
        declared = list(self.distribution.ext_modules or [])
        for extension in declared:
            if extension.name == "bpf._libbpf":
                extension.depends = [str(path) for path in (*shared_headers(), BPF / "binding.c")]
        # Setuptools also finalizes this command to list sources for metadata (`dist_info`,
        # `egg_info`) and for an editable install; translating to C there is thrown away.
        wheel = "bdist_wheel" in self.distribution.commands
        self.distribution.ext_modules = declared + (compiled_extensions() if wheel else [])
        super().finalize_options()

    def copy_extensions_to_source(self) -> None:
        """Put extensions in place as new files: a running process has the old ones mapped."""
        for extension in self.extensions:
            for built in ROOT.glob(extension.name.replace(".", "/") + ".*.so"):
                built.unlink()
        super().copy_extensions_to_source()


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 517: what an isolated build installs first."""
    requires = list(build_meta.get_requires_for_build_wheel(config_settings))
    return [*requires, COMPILER] if wanted("CILIA_BUILD_COMPILED") else requires


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 517: a wheel with the binding, compiled modules, BPF objects and the CNI plugin."""
    emit_binding()
    build_objects()
    build_forwarder()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 660: the binding in place; BPF objects are compiled at first use into the cache."""
    emit_binding()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """PEP 517: the sources, with the emitted C."""
    emit_binding()
    return build_meta.build_sdist(sdist_directory, config_settings)


if __name__ == "__main__":
    if sys.argv[1:2] == ["native"]:
        sys.exit(build_native(sys.argv[2:]))
    emit_binding()
    print(BINDING_SOURCE)

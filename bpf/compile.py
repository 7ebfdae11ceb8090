# SPDX-License-Identifier: Apache-2.0
"""From C source to BPF object, at most once for a given source and compiler.

A wheel carries objects in ``bpf/objects``, each with the hash of the sources that it was made from;
while the sources beside it are the same, a node needs no clang. Otherwise the object comes from the
cache directory, keyed by sources, flags, compiler and libbpf's headers, or from a clang that is
found by probing. Needs no libbpf itself.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from bpf.errors import CompileError, RequirementMissing

SOURCE_DIR = Path(__file__).resolve().parent
PREBUILT_DIR = SOURCE_DIR / "objects"

#: Tried in this order: first what distributions call a known version, then whatever is the default.
CLANGS = (
    "clang-16",
    "clang-17",
    "clang-18",
    "clang-19",
    "clang-20",
    "clang-21",
    "clang",
    "clang-15",
    "clang-14",
)

#: v3 has 32-bit jumps (Linux 5.1); -g makes the BTF that maps are defined by; warnings are errors,
#: but for what a program leaves unused: a context, functions of a header.
FLAGS = (
    "-target",
    "bpf",
    "-mcpu=v3",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unused-function",
    "-Werror",
)

#: Headers from outside that end up in an object.
SYSTEM_HEADERS = (
    "/usr/include/linux/bpf.h",
    "/usr/include/bpf/bpf_helpers.h",
    "/usr/include/bpf/bpf_helper_defs.h",
    "/usr/include/bpf/bpf_endian.h",
)

_INCLUDE = re.compile(rb'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)

NO_CLANG = (
    "no clang was found and no prebuilt object matches the sources: "
    "install clang and libbpf-dev, or a wheel that carries BPF objects"
)


def default_cache_dir() -> Path:
    """Return the directory of the objects: the system's cache for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/cache/cilia/bpf")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "cilia" / "bpf"


def sources() -> list[str]:
    """Names of the programs that can be built, without ``.bpf.c``."""
    return sorted(path.name.removesuffix(".bpf.c") for path in SOURCE_DIR.glob("*.bpf.c"))


def load_object(
    name: str,
    *,
    cache_dir: Path | None = None,
    source_dir: Path | None = None,
    defines: tuple[str, ...] = (),
) -> bytes:
    """The ELF of ``NAME.bpf.c``: prebuilt, cached, or compiled now.

    ``defines`` (``NAME`` or ``NAME=VALUE``) make a variant of its own; a prebuilt object exists for
    none only.
    Raises: RequirementMissing without a usable object and clang, CompileError.
    """
    source_dir = source_dir or SOURCE_DIR
    if not defines and (prebuilt := _prebuilt(name, source_dir)) is not None:
        return prebuilt
    clang = find_clang()
    key = _hash(_inputs(name, source_dir), *defines, *FLAGS, _version(clang), _system_headers())
    cached = (cache_dir or default_cache_dir()) / f"{name}-{key[:32]}.o"
    try:
        return cached.read_bytes()
    except OSError:  # not there, or no place for a cache at all
        elf = compile_source(source_dir / f"{name}.bpf.c", clang, defines)
    _keep(cached, elf)
    return elf


def compile_source(source: Path, clang: str, defines: tuple[str, ...] = ()) -> bytes:
    """Run clang. Raises: CompileError with its output."""
    includes = [f"-I{path}" for path in (source.parent, *_multiarch_includes())]
    macros = [f"-D{define}" for define in defines]
    command = [clang, *FLAGS, *macros, *includes, "-c", source.name, "-o", "-"]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, check=False)
    if done.returncode:
        raise CompileError(source.name, done.stderr.decode(errors="replace"))
    return done.stdout


@cache
def find_clang() -> str:
    """The first clang on PATH that can produce BPF. Raises: RequirementMissing."""
    for name in CLANGS:
        path = shutil.which(name)
        if path is not None and _targets_bpf(path):
            return path
    raise RequirementMissing(NO_CLANG)


def source_hash(name: str, source_dir: Path) -> str:
    """Hash of everything of ours that goes into an object."""
    return _hash(_inputs(name, source_dir), *FLAGS)


def build_prebuilt() -> list[str]:
    """Compile into ``bpf/objects`` each source whose object there is of other sources, and keep an
    index of hashes beside them. Returns the names that were compiled.
    """
    PREBUILT_DIR.mkdir(parents=True, exist_ok=True)
    wanted = {name: source_hash(name, SOURCE_DIR) for name in sources()}
    index = {name: found for name, found in _index().items() if wanted.get(name) == found}
    stale = sorted(wanted.keys() - index.keys())
    _write_index(index)  # a build that is interrupted leaves no hash beside another object
    for name in stale:
        source = SOURCE_DIR / f"{name}.bpf.c"
        (PREBUILT_DIR / f"{name}.o").write_bytes(compile_source(source, find_clang()))
    _write_index(wanted)
    return stale


def _index() -> dict[str, str]:
    """Name of each prebuilt object and the hash of its sources."""
    index_file = PREBUILT_DIR / "index.json"
    return dict(json.loads(index_file.read_text())) if index_file.is_file() else {}


def _write_index(index: dict[str, str]) -> None:
    text = json.dumps(index, indent=1, sort_keys=True) + "\n"
    (PREBUILT_DIR / "index.json").write_text(text)


def _prebuilt(name: str, source_dir: Path) -> bytes | None:
    if source_dir != SOURCE_DIR or _index().get(name) != source_hash(name, source_dir):
        return None
    return (PREBUILT_DIR / f"{name}.o").read_bytes()


def _inputs(name: str, source_dir: Path) -> bytes:
    """Name and content of the source and of every header of ours that it includes."""
    return with_includes(source_dir / f"{name}.bpf.c")


def with_includes(source: Path) -> bytes:
    """All that is ours of what a source is compiled from, for a hash."""
    found: dict[Path, bytes] = {}
    _add_with_includes(source, found)
    return b"".join(b"%s\0%s\0" % (path.name.encode(), found[path]) for path in sorted(found))


def _add_with_includes(path: Path, found: dict[Path, bytes]) -> None:
    """Add a file and those that it includes in quotes, switched off by a macro or not."""
    found[path] = path.read_bytes()
    for name in _INCLUDE.findall(found[path]):
        header = (path.parent / name.decode()).resolve()
        if header not in found:
            _add_with_includes(header, found)


def _system_headers() -> bytes:
    return b"".join(Path(path).read_bytes() for path in SYSTEM_HEADERS if os.path.exists(path))


def _hash(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _multiarch_includes() -> list[str]:
    """Return the place of <asm/types.h> in Debian; other distributions have it in /usr/include."""
    return sorted(path for path in glob.glob("/usr/include/*-linux-gnu") if os.path.isdir(path))


@cache
def _version(clang: str) -> str:
    return subprocess.run([clang, "--version"], capture_output=True, check=True, text=True).stdout


def _targets_bpf(clang: str) -> bool:
    command = [clang, "-target", "bpf", "-mcpu=v3", "-x", "c", "-fsyntax-only", "/dev/null"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _keep(path: Path, content: bytes) -> None:
    """Write a cache file whole or not at all; a full disk costs only the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            whole = Path(directory) / path.name
            whole.write_bytes(content)
            whole.replace(path)
    except OSError:
        return

# SPDX-License-Identifier: Apache-2.0
"""An initial file system with Python, the project and its BPF tests.

It holds files of this machine: the interpreter and its standard library, the packages that agent
and tests import, the commands that they run, and every shared library that these need. Nothing is
compiled inside: the project's objects are packed as in a wheel, test programs from the cache of
``tests.bpf.sources``. Files keep their times, or no compiled Python would be used.

The kernel unpacks several archives one after the other. The first one, Python and the packages, is
made once for each lock; the second one has the project as it is.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bpf import compile as bpf_compile
from tests.bpf.sources import CACHE_DIR
from tests.kernels.guest import ON_DEMAND
from tests.kernels.kernels import Kernel
from tests.kernels.telling import DONE_BEFORE
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]

#: What runs inside, with all that these need: the agent, and its tests.
DISTRIBUTIONS = (
    "cilia",
    *("hypothesis", "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist"),
    "scapy",
)
#: Half of the size, with its own needs; nobody inside writes to an API server.
LEFT_OUT = {"kubernetes"}

#: How many times slower tests are on emulated processors.
EMULATED = 3

#: Parts of the standard library that are large and that nothing here imports.
NOT_PACKED = {"test", "idlelib", "tkinter", "ensurepip", "turtledemo", "lib2to3", "site-packages"}

#: What the tests run besides Python.
COMMANDS = ("ip", "nsenter", "ethtool", "nft", "sh", "mount", "unshare")

#: Of the project: what the programs are made of, and what the tests of packets import.
PROJECT = (
    "bpf",
    "cilia",
    "reconcilers",
    "statedb",
    "tables",
    "tests/bpf",
    "tests/e2e",
    "tests/kernels",
)

DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "etc", "modules", "root", "var")


def build(kernel: Kernel, tests: Sequence[str], done: Sequence[str], cache: Path) -> bytes:
    """Return the archives, in the format that the kernel unpacks (cpio "newc").

    ``tests``: what pytest is told to run. ``done``: the tests of these that it leaves out.
    ``cache``: directory of archives that were made before.
    """
    return _base(cache) + _project_archive(kernel, tests, done)


def _base(cache: Path) -> bytes:
    """Return Python with its packages; in ``cache`` there is one of these for each checkout."""
    lock, code = (ROOT / "requirements.lock").read_text(), Path(__file__).read_text()
    checkout, content = _digest(str(ROOT)), _digest(sys.version, lock, code)
    path = cache / f"python-{checkout}-{content}.cpio"
    if not path.exists():
        for former in cache.glob(f"python-{checkout}-*"):
            former.unlink()
        partial = path.with_suffix(".partial")
        partial.write_bytes(_python())
        partial.rename(path)
    return path.read_bytes()


def _digest(*texts: str) -> str:
    return sha256("\0".join(texts).encode()).hexdigest()[:12]


def _python() -> bytes:
    python = Path(sys.executable).resolve()
    files = [*_tree(Path(sysconfig.get_path("stdlib"))), *_packages()]
    archive = Archive()
    for path in files:
        archive.add(path)
    _add_libraries(archive, [python, *files])
    for name in (str(python), "/usr/bin/python3"):
        archive.file(name, python.read_bytes(), 0o755)
    return archive.finish()


def _project_archive(kernel: Kernel, tests: Sequence[str], done: Sequence[str]) -> bytes:
    commands = [_command(name) for name in COMMANDS]
    archive = Archive()
    for directory in DIRECTORIES:
        archive.directory(directory)
    for name, content in _objects():
        archive.file(name, content, 0o644)
    files = [*_project(), *CACHE_DIR.glob("*.o")]
    for path in files:
        archive.add(path)
    _add_libraries(archive, [*commands, *files])
    for command in commands:
        archive.file(f"/usr/bin/{command.name}", command.read_bytes(), 0o755)
    archive.file("/bin/sh", _command("sh").read_bytes(), 0o755)
    for number, module in enumerate(kernel.modules):
        archive.file(f"/modules/{number:02}.ko", module, 0o644)
    for alias, modules in kernel.on_demand.items():
        for number, module in enumerate(modules):
            archive.file(f"{ON_DEMAND}/{alias}/{number:02}.ko", module, 0o644)
    archive.file("/sbin/modprobe", _modprobe(), 0o755)
    archive.file(str(DONE_BEFORE), "\n".join(done).encode(), 0o644)
    archive.file("/init", _init(tests), 0o755)
    return archive.finish()


def _add_libraries(archive: Archive, files: Sequence[Path]) -> None:
    """Add what programs and extension modules of these files load."""
    for path in _libraries(path for path in files if _is_elf(path)):
        archive.file(str(path), path.resolve().read_bytes(), 0o755)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _init(tests: Sequence[str]) -> bytes:
    """The first process, told where things are and what to run."""
    packages = sysconfig.get_path("purelib")
    return f"""#!/usr/bin/python3 -IB
import sys
sys.path[:0] = [{str(ROOT)!r}, {packages!r}]
from tests.kernels.guest import main
main({str(ROOT)!r}, {packages!r}, {list(tests)!r}, {EMULATED * PATIENCE})
""".encode()


def _modprobe() -> bytes:
    """What the kernel runs when it wants a module: the last argument is an alias of it."""
    return f"""#!/usr/bin/python3 -IBS
import sys
sys.path[:0] = [{str(ROOT)!r}]
from tests.kernels.guest import load_on_demand
load_on_demand(sys.argv[-1])
""".encode()


def _project() -> Iterator[Path]:
    for name in (
        "pyproject.toml",
        "cilia/__init__.py",
        "tests/__init__.py",
        "tests/conftest.py",
        "tests/kernel.py",
        "tests/patience.py",
    ):
        yield ROOT / name
    for directory in PROJECT:
        yield from _tree(ROOT / directory)


def _objects() -> Iterator[tuple[str, bytes]]:
    """The project's BPF objects as a wheel carries them."""
    names = bpf_compile.sources()
    for name in names:
        yield str(bpf_compile.PREBUILT_DIR / f"{name}.o"), bpf_compile.load_object(name)
    index = {name: bpf_compile.source_hash(name, bpf_compile.SOURCE_DIR) for name in names}
    yield str(bpf_compile.PREBUILT_DIR / "index.json"), json.dumps(index).encode()


def _command(name: str) -> Path:
    """Raises: RuntimeError when the machine has none of this name."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise RuntimeError(f"no command {name}")
    return Path(found)


def _packages() -> Iterator[Path]:
    """Yield the files of all distributions that are needed inside, as far as they are imported."""
    site = Path(sysconfig.get_path("purelib"))
    for needed in _needed(DISTRIBUTIONS):
        for file in needed.files or ():
            path = Path(str(needed.locate_file(file)))
            if path.is_relative_to(site) and path.is_file():
                yield path


def _needed(names: Iterable[str]) -> list[Distribution]:
    """Return these distributions and those that they require, here."""
    found: dict[str, Distribution] = {}
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name in LEFT_OUT:
            continue
        found[name] = distribution(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return list(found.values())


def _tree(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.name in NOT_PACKED or path.suffix == ".a":
            continue
        if path.is_dir():
            yield from _tree(path)
        elif path.is_file():
            yield path


def _libraries(binaries: Iterable[Path]) -> set[Path]:
    """Shared libraries, under the names by which the loader looks for them."""
    found: set[Path] = set()
    for binary in binaries:
        # A static file or a script has none; ldd says so with its exit code.
        listing = subprocess.run(
            ["ldd", binary], capture_output=True, text=True, check=False
        ).stdout
        found.update(Path(path) for path in re.findall(r"(/\S+) \(0x", listing))
    return found


class Archive:
    """A cpio archive in the "newc" format: see the kernel's documentation of initramfs buffers."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._known: set[str] = set()

    def add(self, path: Path) -> None:
        """A file of this machine at its own place."""
        found = path.stat()
        self.file(str(path), path.read_bytes(), found.st_mode & 0o777, int(found.st_mtime))

    def file(self, name: str, content: bytes, mode: int, time_s: int = 0) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFREG | mode, content, time_s)

    def directory(self, name: str) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _parents(self, name: str) -> None:
        for parent in reversed(Path(name.lstrip("/")).parents):
            if str(parent) != ".":
                self._entry(str(parent), stat.S_IFDIR | 0o755, b"")

    def _entry(self, name: str, mode: int, content: bytes, time_s: int = 0) -> None:
        name = name.lstrip("/")
        if name in self._known:
            return
        self._known.add(name)
        raw_name = name.encode() + b"\0"
        owner = (0, 0, 1)
        device = (0, 0, 0, 0)
        fields = (len(self._known), mode, *owner, time_s, len(content), *device, len(raw_name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw_name
        self._parts += [_padded(head), _padded(content)]


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)

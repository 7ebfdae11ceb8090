# SPDX-License-Identifier: Apache-2.0
"""The first process inside: mounts, modules, tests, power off. All goes to the console."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import traceback
from pathlib import Path

#: Number of init_module on x86-64.
NR_INIT_MODULE = 175

MOUNTS = (
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
)

#: Modules by the alias under which the kernel asks for them.
ON_DEMAND = Path("/modules-on-demand")

#: How the last line begins from which the host reads the exit code.
DONE = "cilia-tests-exit-code:"

_libc = ctypes.CDLL(None, use_errno=True)


def main(root: str, packages: str, tests: list[str], patience: float) -> None:
    """Run everything; never returns. `patience`: that of the tests."""
    try:
        for kind, place in MOUNTS:
            _checked(_libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None), place)
        _load(Path("/modules"))
        subprocess.run(["/usr/bin/ip", "link", "set", "lo", "up"], check=True)
        code = _run_tests(root, packages, tests, patience)
    except BaseException:  # noqa: BLE001  (the console is the only witness)
        traceback.print_exc()
        code = 99
    print(f"{DONE} {code}", flush=True)
    Path("/proc/sysrq-trigger").write_text("o")
    while True:
        os.sched_yield()


def load_on_demand(alias: str) -> None:
    """Load a module for the kernel, as modprobe does. Raises: OSError if there is none."""
    _load(ON_DEMAND / alias)


def _load(directory: Path) -> None:
    for path in sorted(directory.iterdir()):
        module = path.read_bytes()
        rc = _libc.syscall(NR_INIT_MODULE, module, len(module), b"")
        if rc and ctypes.get_errno() != errno.EEXIST:  # loaded for another one
            _checked(rc, str(path))


def _run_tests(root: str, packages: str, tests: list[str], patience: float) -> int:
    env = {"PYTHONPATH": f"{root}:{packages}", "PATH": "/usr/bin", "HOME": "/root", "TERM": "dumb"}
    env["CILIA_TEST_PATIENCE"] = str(patience)
    command = ["/usr/bin/python3", "-B", "-m", "pytest", "-q", "-n", "2", "-m", "root", *tests]
    # Emulated CPUs are slow, above all to verify programs, which fixtures do.
    options = ["-p", "no:cacheprovider", "--timeout=40", "-o", "timeout_func_only=true"]
    options += ["-p", "tests.kernels.telling"]
    return subprocess.run([*command, *options], cwd=root, env=env, check=False).returncode


def _checked(rc: int, what: str) -> None:
    if rc:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

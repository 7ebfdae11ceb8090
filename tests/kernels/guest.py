# SPDX-License-Identifier: Apache-2.0
"""The first process inside: mounts, modules, tests, power off. All goes to the console."""

from __future__ import annotations

import ctypes
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
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
)

#: How the last line begins from which the host reads the exit code.
DONE = "cilia-tests-exit-code:"

_libc = ctypes.CDLL(None, use_errno=True)


def main(root: str, packages: str, tests: list[str]) -> None:
    """Run everything; never returns."""
    try:
        for kind, place in MOUNTS:
            _checked(_libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None), place)
        for module in sorted(Path("/modules").iterdir()):
            content = module.read_bytes()
            _checked(_libc.syscall(NR_INIT_MODULE, content, len(content), b""), str(module))
        subprocess.run(["/usr/bin/ip", "link", "set", "lo", "up"], check=True)
        code = _run_tests(root, packages, tests)
    except BaseException:  # noqa: BLE001  (the console is the only witness)
        traceback.print_exc()
        code = 99
    print(f"{DONE} {code}", flush=True)
    Path("/proc/sysrq-trigger").write_text("o")
    while True:
        os.sched_yield()


def _run_tests(root: str, packages: str, tests: list[str]) -> int:
    env = {"PYTHONPATH": f"{root}:{packages}", "PATH": "/usr/bin", "HOME": "/root", "TERM": "dumb"}
    command = ["/usr/bin/python3", "-B", "-m", "pytest", "-n", "2", "-m", "root", *tests]
    # Emulated CPUs are slow, above all to verify programs, which fixtures do. The codecs' tests
    # need a package that is not packed, and no kernel.
    options = ["-p", "no:cacheprovider", "--timeout=120", "-o", "timeout_func_only=true"]
    options.append("--ignore=tests/bpf/test_lb_codecs.py")
    return subprocess.run([*command, *options], cwd=root, env=env, check=False).returncode


def _checked(rc: int, what: str) -> None:
    if rc:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels [PACKAGE...] [-- PYTEST ARGUMENTS]``: programs tested on other kernels.

This machine's own kernel comes first: its run also compiles the test programs that the others use.
A run under QEMU that was ended early, or in which tests failed, goes on with those that are left:
see `tests.soak.journal`, which also tells from elsewhere how far it is.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bpf.compile import default_cache_dir
from tests.kernels import guest, image
from tests.kernels.kernels import PACKAGES, Kernel, fetch
from tests.kernels.telling import COUNT, OVER
from tests.soak.journal import Journal, journal

QEMU = "qemu-system-x86_64"
TIMEOUT_S = 3600

#: Kernels and archives that were fetched and made.
CACHE = default_cache_dir().parent / "kernels"

#: Exit code of pytest when it found no test.
NOTHING_LEFT = 5

#: What pytest tells of its progress; the journal tells it better.
_PERCENT = re.compile(r" *\[ *\d+%\]")

#: Each program on its own, and those of packets under real traffic.
TESTS = ("tests/bpf", "tests/e2e/test_nodeport.py", "tests/e2e/test_nodeport_flows.py")


def main() -> int:
    if shutil.which(QEMU) is None:
        print(f"{QEMU} is missing: apt-get install --no-install-recommends qemu-system-x86")
        return 1
    packages, tests = arguments(sys.argv[1:])
    if not on_this_machine(tests):
        return 1
    failed = []
    for package in packages:
        kernel = fetch(package, CACHE)
        print(f"== {kernel.name}", flush=True)
        start = time.monotonic()
        with journal(f"kernels-{kernel.name}", {"tests": [*tests]}) as done:
            code = boot(kernel, tests, done)
        print(f"== {kernel.name}: exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.append(kernel.name)
    print("all kernels passed" if not failed else f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def arguments(given: list[str]) -> tuple[Sequence[str], Sequence[str]]:
    """(packages of kernels, what pytest runs), as given or all."""
    packages, _, tests = " ".join(given).partition("--")
    return packages.split() or PACKAGES, tests.split() or TESTS


def on_this_machine(tests: Sequence[str]) -> bool:
    """Run the tests here; whether they passed."""
    print(f"== {platform.release()} (this machine)", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "root", *tests]
    return subprocess.run(command, cwd=image.ROOT, check=False).returncode == 0


def boot(kernel: Kernel, tests: Sequence[str], done: Journal) -> int:
    """Run the tests that are not done under a kernel, pass its console on, and return pytest's exit
    code; 98 if there is none at the end.
    """
    with tempfile.TemporaryDirectory() as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(image.build(kernel, tests, done.pieces, CACHE))
        command = [
            *(QEMU, "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "4096", "-no-reboot"),
            *("-nographic", "-nodefaults", "-serial", "stdio", "-net", "none"),
            *("-kernel", str(kernel.image), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 quiet mitigations=off panic=-1 random.trust_cpu=on"),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as qemu:
            code = _follow(qemu, done)
    if code == NOTHING_LEFT and done.pieces:
        code = 0
    if code == 0:
        done.finish("passed")
    return code


def _follow(qemu: subprocess.Popen[str], done: Journal) -> int:
    code, before, total = 98, len(done.pieces), 0
    start = time.monotonic()
    assert qemu.stdout is not None
    for line in map(str.rstrip, qemu.stdout):
        elapsed_s = time.monotonic() - start
        if line.startswith(OVER):
            over = len(done.pieces) - before + 1
            done.add(line.removeprefix(OVER).strip(), f"{over} of {total} tests, {elapsed_s:.0f} s")
        elif line and not _PERCENT.fullmatch(line):
            print(f"{elapsed_s:5.0f} s  {line}", flush=True)
        if line.startswith(guest.DONE):
            code = int(line.removeprefix(guest.DONE))
        elif COUNT in line:  # xdist leaves its line open
            total = int(line.rpartition(COUNT)[2])
        if elapsed_s > TIMEOUT_S:
            qemu.kill()
    return code


if __name__ == "__main__":
    sys.exit(main())

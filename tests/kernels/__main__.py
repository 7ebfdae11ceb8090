# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels [PACKAGE...] [-- PYTEST ARGUMENTS]``: programs tested on other kernels.

This machine's own kernel comes first: its run also compiles the test programs that the others use.
"""

from __future__ import annotations

import platform
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

QEMU = "qemu-system-x86_64"
TIMEOUT_S = 1800

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
        kernel = fetch(package, default_cache_dir().parent / "kernels")
        print(f"== {kernel.name}", flush=True)
        start = time.monotonic()
        code = boot(kernel, tests)
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


def boot(kernel: Kernel, tests: Sequence[str]) -> int:
    """Run the tests under a kernel and pass its console on; 98 = it said nothing at the end."""
    with tempfile.TemporaryDirectory() as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(image.build(kernel, tests))
        command = [
            *(QEMU, "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "4096", "-no-reboot"),
            *("-nographic", "-nodefaults", "-serial", "stdio", "-net", "none"),
            *("-kernel", str(kernel.image), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as qemu:
            return _follow(qemu)


def _follow(qemu: subprocess.Popen[str]) -> int:
    code = 98
    deadline = time.monotonic() + TIMEOUT_S
    assert qemu.stdout is not None
    for line in qemu.stdout:
        print("  ", line.rstrip(), flush=True)
        if line.startswith(guest.DONE):
            code = int(line.removeprefix(guest.DONE))
        if time.monotonic() > deadline:
            qemu.kill()
    return code


if __name__ == "__main__":
    sys.exit(main())

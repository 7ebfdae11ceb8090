# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels [PACKAGE...]``: the privileged BPF tests on other kernels.

This machine's own kernel comes first: its run also compiles the test programs that the others use.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bpf.compile import default_cache_dir
from tests.kernels import guest, image
from tests.kernels.kernels import PACKAGES, Kernel, fetch

QEMU = "qemu-system-x86_64"
TIMEOUT_S = 900


def main() -> int:
    if shutil.which(QEMU) is None:
        print(f"{QEMU} is missing: apt-get install --no-install-recommends qemu-system-x86")
        return 1
    if not on_this_machine():
        return 1
    failed = []
    for package in sys.argv[1:] or PACKAGES:
        kernel = fetch(package, default_cache_dir().parent / "kernels")
        print(f"== {kernel.name}", flush=True)
        start = time.monotonic()
        code = boot(kernel)
        print(f"== {kernel.name}: exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.append(kernel.name)
    print("all kernels passed" if not failed else f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def on_this_machine() -> bool:
    """Run the tests here; whether they passed."""
    print(f"== {platform.release()} (this machine)", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "root", "tests/bpf"]
    return subprocess.run(command, cwd=image.ROOT, check=False).returncode == 0


def boot(kernel: Kernel) -> int:
    """Run the tests under a kernel and pass its console on; 98 = it said nothing at the end."""
    with tempfile.TemporaryDirectory() as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(image.build(kernel))
        command = [
            *(QEMU, "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "2048", "-no-reboot"),
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

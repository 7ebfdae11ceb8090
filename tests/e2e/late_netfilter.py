# SPDX-License-Identifier: Apache-2.0
"""An agent that finds netfilter's connections where a test says so.

    python -m tests.e2e.late_netfilter DIRECTORY agent [OPTION]...

Where they are built into the kernel nothing can load them late. This agent looks for the types of
a module in DIRECTORY, and so its programs are first loaded without the look-up. The kernel's own
functions are what they call afterwards. Its waits are short.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bpf import features
from cilia.__main__ import main as cilia
from cilia.datapath import netfilter_lookup
from cilia.loadbalancer import replacement

VMLINUX, MODULE, SYSCTL = "vmlinux", "nf_conntrack", "nf_conntrack_max"


def prepare(directory: Path) -> None:
    """A kernel without the module."""
    directory.mkdir()
    (directory / VMLINUX).write_bytes(b"\0bpf_skc_lookup_tcp\0")


def load(directory: Path) -> None:
    """As loading the module: its parameters, then its types."""
    (directory / SYSCTL).write_text("262144\n")
    names = b"".join(b"\0" + name for name in features.CONNTRACK_FUNCTIONS)
    (directory / MODULE).write_bytes(names + b"\0")


def main() -> None:
    directory = Path(sys.argv.pop(1))
    features.KERNEL_BTF, features.CONNTRACK_BTF = directory / VMLINUX, directory / MODULE
    replacement.INTERVAL_S = 0.2  # type: ignore[misc]
    netfilter_lookup.LOOK_S = 0.1  # type: ignore[misc]
    netfilter_lookup.CONNTRACK = directory / SYSCTL  # type: ignore[misc]
    cilia()


if __name__ == "__main__":
    main()

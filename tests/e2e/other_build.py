# SPDX-License-Identifier: Apache-2.0
"""A copy of the product as another release might be: other programs, another layout, other names.

The copy is made by a few replacements in the sources, each of which must find its place, so that
the copy never becomes the same build unnoticed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.world import REPOSITORY

PARTS = ("statedb", "reconcilers", "tables", "bpf", "cilia", "tests/e2e")

#: Its programs go into the cache of objects, which the agents of the copy find them in.
COMPILE = "from bpf import compile; [compile.load_object(name) for name in compile.sources()]"

#: (file, what is there, what the other build has instead)
Change = tuple[str, str, str]

OTHER_LAYOUT: tuple[Change, ...] = (
    # The values of both backend maps grow in front: nothing in them is where it was.
    *(
        (
            "bpf/lib/lb_types.h",
            f"struct lb{version}_backend {{\n",
            f"struct lb{version}_backend {{\n\t__u32 pad_front;\n",
        )
        for version in (4, 6)
    ),
    # The maps for the way back have another name.
    *(
        ("bpf/lib/lb.h", f"LB_HASH(cilia_lb{version}_rev,", f"LB_HASH(cilia_lb{version}_back,")
        for version in (4, 6)
    ),
    *(
        ("bpf/lib/lb_packet.h", f"&cilia_lb{version}_rev", f"&cilia_lb{version}_back")
        for version in (4, 6)
    ),
    ("bpf/maps/lb.py", 'f"{name}_rev"', 'f"{name}_back"'),
)

#: The backend maps have another name and the same layout, as when a version suffix changes.
OTHER_NAMES: tuple[Change, ...] = (
    *(("bpf/lib/lb.h", f"cilia_lb{version}_be", f"cilia_lb{version}_to") for version in (4, 6)),
    ("bpf/maps/lb.py", '_be"', '_to"'),
)


def make(target: Path, changes: Sequence[Change]) -> None:
    """Copy the packages to `target`, change them and compile the programs: an agent that had to
    would take longer to start than a test waits.
    """
    ignored = shutil.ignore_patterns("__pycache__", "objects")
    for part in PARTS:
        shutil.copytree(REPOSITORY / part, target / part, ignore=ignored)
    shutil.copy(REPOSITORY / "tests/__init__.py", target / "tests")
    for name, old, new in changes:
        path = target / name
        source = path.read_text()
        assert old in source, f"{name} has no «{old}» any more"
        path.write_text(source.replace(old, new))
    subprocess.run([sys.executable, "-c", COMPILE], cwd=target, check=True)

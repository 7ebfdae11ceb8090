# SPDX-License-Identifier: Apache-2.0
"""cilia: Kubernetes networking on eBPF.

Here live the programs (`agent`, `operator`, `cli`, `cni`) and the edges and motions that are theirs
alone; the tables stand in `tables/`, their engine in `statedb/`, what moves them into the kernel in
`reconcilers/` and `bpf/`. Start reading at `cilia/agent/wiring.py`: it shows every part and who
talks to whom.
"""

from typing import TYPE_CHECKING

__all__ = ["__version__"]

__version__: str

if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """Look the version up at first use, which takes a command 30 ms."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("cilia")
        except PackageNotFoundError:  # a checkout that was not installed
            found = "0+checkout"
        globals()[name] = found
        return found

# SPDX-License-Identifier: Apache-2.0
"""cilia: Kubernetes networking on eBPF.

Here live the programs (`agent`, `operator`, `cli`, `cni`) and the edges and motions that are theirs
alone; the tables stand in `tables/`, their engine in `statedb/`, what moves them into the kernel in
`reconcilers/` and `bpf/`. Start reading at `cilia/agent/wiring.py`: it shows every part and who
talks to whom.
"""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("cilia")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+checkout"

# SPDX-License-Identifier: Apache-2.0
"""`make bench`: run the benchmarks; `--peers`: with a peer beside ours where there is one."""

from __future__ import annotations

import argparse
import importlib
import pkgutil

import tests.benchmarks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", action="store_true", help="measure the peers too")
    parser.add_argument("only", nargs="*", help="names of benchmarks, e.g. statedb agent")
    arguments = parser.parse_args()
    for module in sorted(m.name for m in pkgutil.iter_modules(tests.benchmarks.__path__)):
        name = module.removeprefix("bench_")
        if name == module or (arguments.only and name not in arguments.only):
            continue
        importlib.import_module(f"tests.benchmarks.{module}").run(peers=arguments.peers)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Which modules mypyc compiles into the wheel.

The list is here, beside what it names, and is read by the build; the same source runs uncompiled
where there is no compiler. Modules with coroutines, weak references or msgspec structs stay
interpreted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODULES = (
    "statedb/_row.py",
    "statedb/_tree.py",
    "statedb/_opened.py",
    "statedb/_watchers.py",
    "statedb/_store.py",
    "statedb/index.py",
    "statedb/lpm.py",
    "statedb/graveyard.py",
    "statedb/txn.py",
    "statedb/changes.py",
    "statedb/table.py",
    "statedb/db.py",
)


def ext_modules() -> list[Any]:
    """Return the extension modules for setuptools, in one group so that calls between them are
    direct.

    Needs mypy and a C compiler.
    """
    from mypyc.build import mypycify

    modules = list(mypycify(["--strict", *MODULES], opt_level="3", group_name="statedb"))
    for module in modules:
        module.extra_compile_args += ["-include", str(Path(__file__).with_name("_notrash.h"))]
    return modules

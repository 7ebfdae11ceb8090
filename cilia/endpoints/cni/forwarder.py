# SPDX-License-Identifier: Apache-2.0
"""From the C sources of `cilia-cni` to the static program that a wheel carries.

Run as a module it builds the program of a checkout. Needs the standard library alone.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["BINARY", "NAME", "ForwarderError", "build", "built"]

NAME: Final = "cilia-cni"
#: The program as it is packaged.
BINARY: Final = Path(__file__).resolve().parent / "bin" / NAME
#: There in a checkout alone.
SOURCES: Final = Path(__file__).resolve().parents[3] / "cni"
#: Node images may have another C library than the one of the build, or none.
FLAGS: Final = ("-static", "-O2", "-Wall", "-Wextra", "-Werror")


class ForwarderError(Exception):
    """The program cannot be built, or is not there; the text says what to do."""


def built() -> Path:
    """Return the path of the program.

    Raises:
        ForwarderError: it was not built.
    """
    if not BINARY.is_file():
        raise ForwarderError(
            f"{BINARY} is not there: run install/setup.sh in a checkout, or install a wheel that"
            " was built without CILIA_BUILD_FORWARDER=0"
        )
    return BINARY


def build(into: Path = BINARY, defines: Sequence[str] = ()) -> None:
    """Compile the program; it takes the place of a former one in one step.

    `defines` (`NAME=VALUE`) replace constants of the sources.

    Raises:
        ForwarderError: no compiler, no static C library, or a warning.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    new = into.with_name(f".{into.name}.{os.getpid()}")
    macros = [f"-D{define}" for define in defines]
    sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    try:
        done = _compile([*FLAGS, *macros, "-o", str(new), *sources])
        if done.returncode:
            raise ForwarderError(_reason(done.stderr, new))
        new.replace(into)
    finally:
        new.unlink(missing_ok=True)


def _reason(output: str, probe: Path) -> str:
    """Say why the compiler failed: for want of a library it fails with any program."""
    least = '#include <stdio.h>\nint main(void) { return puts(""); }'
    if _compile([*FLAGS, "-x", "c", "-o", str(probe), "-"], least).returncode:
        return (
            f"{NAME} cannot be built: it is linked statically, and there is no static C library:"
            " install libc6-dev (Debian, Ubuntu), glibc-static (Fedora, RHEL) or"
            " glibc-devel-static (SUSE)"
        )
    return f"{NAME} cannot be compiled: {output.strip()}"


def _compile(arguments: Sequence[str], source: str = "") -> subprocess.CompletedProcess[str]:
    command = [*shlex.split(os.environ.get("CC") or "cc"), *arguments]
    try:
        return subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ForwarderError(
            f"{NAME} cannot be built: there is no C compiler {command[0]!r}: install gcc, or name"
            " another one in CC"
        ) from None


def main() -> int:
    try:
        build()
    except ForwarderError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

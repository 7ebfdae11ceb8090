# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong at the kernel edge, as exceptions by kind.

::

    BPFError                    .errno (0 if it is not the kernel's)
    ├── KernelError             a system call failed
    │   ├── NotFound            ENOENT, ESRCH: no such key, pin or object
    │   ├── Exists              EEXIST
    │   ├── MapFull             E2BIG, ENOSPC: no room for another entry
    │   ├── NoPrivilege         EPERM, EACCES
    │   ├── NoMemory            ENOMEM
    │   ├── DeviceGone          ENODEV, ENXIO
    │   ├── Detached            ENOLINK: the hook of a link is gone
    │   ├── Unsupported         EOPNOTSUPP, ENOTSUPP
    │   ├── Busy                EBUSY, EAGAIN
    │   ├── StaleRevision       ESTALE: someone else changed the hook
    │   ├── Invalid             EINVAL
    │   └── BatchError          one entry of a batch failed; .done, .cause
    ├── LoadError               the kernel or libbpf refuses an object; .log
    ├── CompileError            clang refuses a source; .log
    └── RequirementMissing      the machine lacks something; one sentence says what and what to do
"""

from __future__ import annotations

import errno as _errno
import os

#: Not in Python's errno module: what the kernel returns internally for "not supported".
ENOTSUPP = 524

#: Lines at the end of a verifier log that are shown; the cause stands there.
LOG_LINES_SHOWN = 25


class BPFError(Exception):
    """Base of all errors of this package."""

    errno: int = 0


class KernelError(BPFError):
    """A system call failed; ``errno`` says why."""

    def __init__(self, what: str, errno: int) -> None:
        self.what = what
        self.errno = errno
        reason = "operation not supported" if errno == ENOTSUPP else os.strerror(errno)
        super().__init__(f"{what}: {reason}")


class NotFound(KernelError):
    """No such key, pin or object."""


class Exists(KernelError):
    """The key, pin or attachment exists already."""


class MapFull(KernelError):
    """The map has no room for another entry."""


class NoPrivilege(KernelError):
    """The process may not do this."""


class NoMemory(KernelError):
    """The kernel has no memory for it."""


class DeviceGone(KernelError):
    """The network device does not exist (any more)."""


class Detached(KernelError):
    """The target of a link is gone."""


class Unsupported(KernelError):
    """This kernel cannot do it."""


class Busy(KernelError):
    """The hook is taken, or the kernel asks to try again."""


class StaleRevision(KernelError):
    """The hook's list of programs changed since its revision was read."""


class Invalid(KernelError):
    """The kernel refuses the arguments."""


class BatchError(KernelError):
    """Entry number ``done`` of a batch failed; those before it are done, those after not tried."""

    def __init__(self, what: str, cause: KernelError, done: int) -> None:
        super().__init__(what, cause.errno)
        self.cause = cause
        self.done = done


_KINDS: dict[int, type[KernelError]] = {
    _errno.ENOENT: NotFound,
    _errno.ESRCH: NotFound,
    _errno.EEXIST: Exists,
    _errno.E2BIG: MapFull,
    _errno.ENOSPC: MapFull,
    _errno.EPERM: NoPrivilege,
    _errno.EACCES: NoPrivilege,
    _errno.ENOMEM: NoMemory,
    _errno.ENODEV: DeviceGone,
    _errno.ENXIO: DeviceGone,
    _errno.ENOLINK: Detached,
    _errno.EOPNOTSUPP: Unsupported,
    ENOTSUPP: Unsupported,
    _errno.EBUSY: Busy,
    _errno.EAGAIN: Busy,
    _errno.ESTALE: StaleRevision,
    _errno.EINVAL: Invalid,
}


def kernel_error(what: str, errno: int) -> KernelError:
    """The exception of the kind that ``errno`` stands for."""
    return _KINDS.get(errno, KernelError)(what, errno)


def trim_log(log: str, shown: int = LOG_LINES_SHOWN) -> str:
    """The last ``shown`` lines that say something, and how many were left out.

    >>> trim_log("a\\n\\nb\\nc\\n", shown=2)
    '2 lines omitted\\nb\\nc'
    >>> trim_log("a\\n")
    'a'
    """
    lines = log.rstrip().splitlines()
    useful = [line for line in lines if line.strip() and not _is_chatter(line)]
    kept = useful[-shown:]
    omitted = len(lines) - len(kept)
    return "\n".join([f"{omitted} lines omitted", *kept] if omitted else kept)


def _is_chatter(line: str) -> bool:
    """Lines of libbpf and the verifier that frame a log or count, and never name the cause."""
    return line.startswith(
        ("-- BEGIN", "-- END", "processed ", "verification time ", "stack depth ", "max_states_per")
    )


class LoadError(BPFError):
    """An object does not load; ``log`` is everything that libbpf and the verifier said."""

    def __init__(self, name: str, errno: int, log: str) -> None:
        self.name = name
        self.errno = errno
        self.log = log
        super().__init__(f"load {name}: {os.strerror(errno)}\n{trim_log(log)}".rstrip())


class CompileError(BPFError):
    """A BPF source does not compile; ``log`` is the compiler's output."""

    def __init__(self, source: str, log: str) -> None:
        self.source = source
        self.log = log
        super().__init__(f"compile {source}:\n{log.rstrip()}")


class RequirementMissing(BPFError):
    """The machine lacks something; the message is one sentence for its owner."""

# SPDX-License-Identifier: Apache-2.0
"""DELs that `cilia-cni` kept while there was no agent (`cni/delete_queue.c` writes them).

The directory `cni-queue` beside the socket has one file an attachment, which is the request:
NETWORK:CONTAINER:INTERFACE.delete. Whoever writes one holds `lockfile` shared, so the agent has it
exclusively from before the first look until its socket listens.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import structlog

from cilia.endpoints.cni.errors import CNIError, Code, WireError
from cilia.endpoints.cni.requests import Attachment, Command, Request, parse
from cilia.endpoints.cni.wire import MAX_REQUEST, split
from cilia.linux.records import set_aside
from cilia.regular_files import read_regular

__all__ = ["DeleteQueue"]

LOCKFILE: Final = "lockfile"
SUFFIX: Final = ".delete"
#: How long others may have the lock; a program that has it gives up sooner.
LOCK_S: Final = 60.0
#: flock(2) cannot wait for a limited time.
LOCK_TRIES_S: Final = 0.02

log = structlog.get_logger("cni")


class DeleteQueue:
    """The queue's directory, which is there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Nobody adds to the queue in the block; if others keep the lock, it is entered all the
        same, since requests are waiting.
        """
        path = self.directory / LOCKFILE
        try:
            descriptor = _opened(path)
        except OSError as error:  # a directory, a socket, a link: nobody can have locked it
            set_aside(path, str(error))
            descriptor = _opened(path)
        try:
            with anyio.move_on_after(LOCK_S):
                while not _is_taken(descriptor):
                    await anyio.sleep(LOCK_TRIES_S)
            if not _is_taken(descriptor):
                log.warning("others keep the lock of the queue of DELs", path=str(path))
            yield
        finally:
            os.close(descriptor)

    def attachments(self) -> list[Attachment]:
        """Return whose DELs are queued, as the names of the files say it."""
        found: list[Attachment] = []
        for name in sorted(os.listdir(self.directory)):
            if not name.endswith(SUFFIX):
                continue
            try:
                found.append(Attachment(*name.removesuffix(SUFFIX).split(":")))
            except TypeError:
                set_aside(self.directory / name, "its name is that of no attachment")
        return found

    def request_of(self, attachment: Attachment) -> Request | None:
        """Return the DEL of an attachment, if one is queued; what is none is set aside and told."""
        path = self._path(attachment)
        try:
            request = parse(*split(read_regular(path, MAX_REQUEST, follow=False)))
            if request.command is not Command.DEL or request.attachment != attachment:
                raise WireError("it is not the DEL that its name says")
        except FileNotFoundError:
            return None
        except (CNIError, WireError, OSError) as error:
            set_aside(path, str(error))
            return None
        return request

    def remove(self, attachment: Attachment) -> None:
        """Forget the DEL of an attachment: it was carried out.

        Raises:
            CNIError: the file stays, and would be carried out again on what is added by then.
        """
        path = self._path(attachment)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            text = f"{path} is carried out and cannot be removed ({error.strerror}): remove it"
            raise CNIError(Code.IO_FAILURE, text) from None

    def _path(self, attachment: Attachment) -> Path:
        return self.directory / (":".join(attachment) + SUFFIX)


def _opened(path: Path) -> int:
    """Raises: OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

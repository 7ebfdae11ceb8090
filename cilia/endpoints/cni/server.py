# SPDX-License-Identifier: Apache-2.0
"""The socket on which `cilia-cni` hands over what container runtimes ask for.

Each connection has one request (`wire.py`). It is read within a time, parsed (`requests.py`), and
carried out by a `Plugin`, and the answer sent:

- Requests of one attachment come one after the other, in the order in which they were read whole.
- A request is carried out only if its sender still waits: one that gave up a DEL has queued it,
  one that gave up anything else tells the runtime, which deletes or asks again.
- A DEL that is queued is carried out before an ADD of its attachment. Containers keep their ids
  over a restart: an old DEL must not meet a new ADD.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Final, TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup

from cilia.endpoints.cni import wire
from cilia.endpoints.cni.delete_queue import DeleteQueue
from cilia.endpoints.cni.errors import CNIError, Code, WireError
from cilia.endpoints.cni.plugin import Plugin
from cilia.endpoints.cni.requests import Attachment, Command, Request, parse
from cilia.endpoints.cni.results import VERSIONS, encoded
from cilia.endpoints.cni.turns import Turns
from cilia.endpoints.state_files import DELETE_QUEUE
from cilia.linux.path_watch import PathWatch
from cilia.linux.records import make_directory
from cilia.program.directories import own_directory
from cilia.program.serving import unix_socket
from statedb.shown.text import shortened

__all__ = ["Server"]

T = TypeVar("T")

#: Requests that are carried out at a time; STATUS, which nothing may hold up, is not counted.
MAX_REQUESTS: Final = 64
#: Connections at a time; those that are more wait in the socket's queue.
MAX_CONNECTIONS: Final = 256
#: Longest that a peer may take to send its request, or to take its answer.
PEER_S: Final = 5.0
#: Longest that each command may take; `cilia-cni` waits longer (ANSWER_S there), but for DEL.
LIMITS_S: Final[Mapping[Command, float]] = {
    Command.ADD: 60.0,  # after a queued DEL
    Command.DEL: 30.0,
    Command.CHECK: 30.0,
    Command.STATUS: 5.0,
    Command.GC: 60.0,
}
#: After this time what is queued and failed is tried again.
RETRY_S: Final = 60.0
#: The process or the machine has no more descriptors or memory: nothing tells when it has.
FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
FULL_S: Final = 1.0

log = structlog.get_logger("cni")


class Server:
    """Serves requests on a socket; `serve` and `follow_queue` are run side by side."""

    def __init__(
        self, path: Path, plugin: Plugin, limits_s: Mapping[Command, float] = LIMITS_S
    ) -> None:
        self.path = path
        self._plugin = plugin
        self._limits_s = limits_s
        self._queue = DeleteQueue(path.with_name(DELETE_QUEUE))
        self._turns = Turns()
        self._requests = anyio.Semaphore(MAX_REQUESTS)
        self._connections = anyio.Semaphore(MAX_CONNECTIONS)

    async def serve(self, started: Callable[[], None] = lambda: None) -> None:
        """Carry queued DELs out, then serve until cancelled, on a new socket whenever the one
        there is gone.

        Raises:
            ProgramError: the directory of the queue is somebody else's.
            OSError: there is no directory for the socket.
        """
        listener = await self._listener()
        async with anyio.create_task_group() as connections:
            while True:
                with listener:
                    started()
                    async with anyio.create_task_group() as accepting:
                        accepting.start_soon(self._take, listener, connections)
                        await self._gone()
                        accepting.cancel_scope.cancel()
                log.warning("the socket is gone and is made anew", path=str(self.path))
                listener = await self._listener()

    async def _listener(self) -> socket.socket:
        self._own_queue()
        async with self._queue.locked():
            with anyio.move_on_after(self._limits_s[Command.DEL]):  # `follow_queue` has the rest
                await self._work_off()
            listener = unix_socket(self.path)
        listener.setblocking(False)
        return listener

    async def _gone(self) -> None:
        """Return when the socket's path leads to another file, or to none."""
        inode = _inode(self.path)
        while True:
            with PathWatch([self.path]) as watch:
                if inode is None or _inode(self.path) != inode:
                    return
                await watch.wait()

    async def _take(self, listener: socket.socket, connections: TaskGroup) -> None:
        while True:
            await self._connections.acquire()
            try:
                peer = await _accept(listener)
            except BaseException:  # the listener has ended
                self._connections.release()
                raise
            connections.start_soon(self._attend, peer)

    async def follow_queue(self) -> None:
        """Carry out what is queued while the agent is there: it took no request in time."""
        directory = self._queue.directory
        while True:
            self._own_queue()
            with PathWatch([directory], contents=[directory]) as watch:
                await self._work_off()
                await watch.wait(RETRY_S)

    def _own_queue(self) -> None:
        """Raises: OSError; ProgramError if the directory is somebody else's."""
        make_directory(self._queue.directory)
        own_directory(self._queue.directory)

    async def _work_off(self) -> None:
        """Carry out what is queued; what fails stays there."""
        async with anyio.create_task_group() as group:
            for attachment in self._queue.attachments():
                group.start_soon(self._delete_in_turn, attachment)

    async def _delete_in_turn(self, attachment: Attachment) -> None:
        async with self._turns.take(attachment), self._requests:
            try:
                await self._delete_queued(attachment)
            except CNIError as error:
                log.warning("a queued DEL failed", attachment=":".join(attachment), error=error.msg)

    async def _delete_queued(self, attachment: Attachment) -> None:
        """Carry out the DEL of an attachment, if one is queued; its turn is the caller's.

        Raises: CNIError.
        """
        if (request := self._queue.request_of(attachment)) is not None:
            await self._carried_out(request, self._plugin.delete)
            self._queue.remove(attachment)

    async def _attend(self, peer: socket.socket) -> None:
        """Serve one connection; nothing that a peer does ends the others."""
        descriptors: list[int] = []
        try:
            with peer:
                if _is_trusted(peer):
                    await self._converse(peer, descriptors)
        except OSError as error:
            log.warning("a container runtime did not take its answer", error=str(error))
        finally:
            self._connections.release()
            for descriptor in descriptors:
                os.close(descriptor)

    async def _converse(self, peer: socket.socket, descriptors: list[int]) -> None:
        answer = b""
        try:
            with anyio.move_on_after(PEER_S) as reading:
                whole = await wire.receive_request(peer, descriptors)
            if reading.cancelled_caught:
                raise WireError(f"it is not sent within {PEER_S:g} s")
            answer = await self._answer(peer, parse(*wire.split(whole), *descriptors))
        except WireError as error:
            log.warning("what came is no request of cilia-cni", reason=str(error))
            refusal = CNIError(Code.UNDECODABLE, f"cilia cannot read the request: {error}")
            answer = wire.answer(1, refusal.encoded(VERSIONS[-1]))
        except CNIError as error:
            log.warning("a request was refused", code=int(error.code), reason=error.msg)
            answer = wire.answer(1, error.encoded(VERSIONS[-1]))
        except Exception as error:  # decided here: the other connections go on
            log.exception("a request was not understood")
            failure = CNIError(Code.INTERNAL, f"cilia failed to read the request: {_shown(error)}")
            answer = wire.answer(1, failure.encoded(VERSIONS[-1]))
        with anyio.move_on_after(PEER_S) as sending:
            await wire.send(peer, answer)
        if sending.cancelled_caught:
            raise TimeoutError(f"it was not taken within {PEER_S:g} s")

    async def _answer(self, peer: socket.socket, request: Request) -> bytes:
        """Carry a request out when it is its turn; empty if nobody waits for it any more."""
        key = request.attachment if request.is_attached else None
        place = nullcontext() if request.command is Command.STATUS else self._requests
        async with self._turns.take(key):
            try:
                if request.command is Command.ADD:
                    await self._wait(peer, request)
                async with place:
                    if _has_gone(peer):
                        log.warning("nobody waits for a request any more", **_fields(request))
                        return b""
                    return wire.answer(0, await self._done(request))
            except CNIError as error:
                fields = _fields(request)
                log.warning("a request failed", code=int(error.code), reason=error.msg, **fields)
                return wire.answer(1, error.encoded(request.config.cni_version))

    async def _wait(self, peer: socket.socket, request: Request) -> None:
        """Wait for what an ADD needs, without a place, while its sender is there.

        Raises: CNIError.
        """
        failures: list[CNIError] = []  # no frame has a name for what it raises
        async with anyio.create_task_group() as group:

            async def gone() -> None:
                await anyio.wait_readable(peer)  # all was sent: only its end is to come
                group.cancel_scope.cancel()

            group.start_soon(gone)
            try:
                await self._carried_out(request, self._plugin.wait)
            except CNIError as error:
                failures.append(error)
            group.cancel_scope.cancel()
        if failures:
            raise failures.pop()

    async def _done(self, request: Request) -> bytes:
        """Carry a request out and return its output.

        Raises: CNIError.
        """
        plugin = self._plugin
        match request.command:
            case Command.ADD:
                await self._delete_queued(request.attachment)
                return await self._carried_out(request, self._add)
            case Command.DEL:
                await self._carried_out(request, plugin.delete)
                self._queue.remove(request.attachment)
            case Command.CHECK:
                await self._carried_out(request, plugin.check)
            case Command.STATUS:
                await self._carried_out(request, plugin.status)
            case Command.GC:
                await self._carried_out(request, plugin.gc)
        return b""

    async def _add(self, request: Request) -> bytes:
        return encoded(await self._plugin.add(request), request.config.cni_version)

    async def _carried_out(self, request: Request, work: Callable[[Request], Awaitable[T]]) -> T:
        """Return what `work` returns. Raises: CNIError for all errors, and when time is over."""
        limit_s = self._limits_s[request.command]
        with anyio.move_on_after(limit_s) as scope:
            try:
                return await work(request)
            except CNIError:
                raise
            except Exception as error:  # decided here: the runtime is told, the log has the rest
                log.exception("a request failed", **_fields(request))
                raise CNIError(
                    Code.INTERNAL,
                    f"{request.command} failed inside of cilia ({_shown(error)}):"
                    " the agent's log has the traceback",
                ) from None
        assert scope.cancelled_caught
        raise CNIError(
            Code.TRY_AGAIN_LATER,
            f"{request.command} was not done within {limit_s:g} s: look at `cilia status` on the"
            " node; the runtime tries again",
        )


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        await anyio.wait_readable(listener)
        try:
            peer, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            continue
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("no connection can be taken now", error=str(error))
            await anyio.sleep(FULL_S)
            continue
        peer.setblocking(False)
        return peer


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _is_trusted(peer: socket.socket) -> bool:
    """True if the peer is root, or the user of this process."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", credentials)
    if uid in (0, os.geteuid()):
        return True
    log.warning("a peer is not root and is not served", pid=pid, uid=uid)
    return False


def _has_gone(peer: socket.socket) -> bool:
    try:
        return not peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _shown(error: Exception) -> str:
    return shortened(f"{type(error).__name__}: {error}")


def _fields(request: Request) -> dict[str, str]:
    return {"command": request.command, "attachment": ":".join(request.attachment)}

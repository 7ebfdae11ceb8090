# SPDX-License-Identifier: Apache-2.0
"""The state directory of an agent: locked before anything else, made anew when it goes.

Whoever runs holds its lock, `cilia cleanup` too. While an agent runs somebody may remove the
directory, rename it, or mount something over it: then there is a new one at once, with a lock, the
records, and the control socket.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio
import structlog
from starlette.types import ASGIApp

from cilia.agent.config import AgentConfig
from cilia.cluster.inputs import COPIES_DIRECTORY, SERVERS_FILE, STATE_FILE_COPIES
from cilia.cluster.own_node import OWN_NODE_FILE
from cilia.datapath.mounts import RECORD, mounts_of, remember_mounts, remember_pins
from cilia.endpoints.state_files import (
    CNI_FILES,
    CNI_SOCKET,
    DELETE_QUEUE,
    ENDPOINTS,
    is_endpoint_file,
)
from cilia.k8s.last_readable import is_copy
from cilia.linux.lock import AlreadyRunning, InstanceLock
from cilia.linux.path_watch import PathWatch
from cilia.linux.records import BROKEN, name_of_record
from cilia.program.directories import own_directory
from cilia.program.errors import ProgramError
from cilia.program.health import HealthReporter
from cilia.program.instance import SOCKET, InstanceOptions
from cilia.program.pins import PINS
from cilia.program.serving import serve, unix_socket

__all__ = ["ControlSocket", "entries", "locked", "make_and_lock", "sentence"]

log = structlog.get_logger("agent")

#: What an agent, and the init container that writes its options, keep in the state directory.
NAMES: Final = frozenset(
    {
        SOCKET,
        CNI_SOCKET,
        DELETE_QUEUE,
        CNI_FILES,
        RECORD,
        PINS,
        SERVERS_FILE,
        OWN_NODE_FILE,
        COPIES_DIRECTORY,
        STATE_FILE_COPIES,
        "config",
        "cgroupv2",
    }
)

COPIES: Final = frozenset({COPIES_DIRECTORY, STATE_FILE_COPIES})

#: How long a directory that cannot be made is left alone if nothing is announced.
AGAIN_S: Final = 5.0


@contextmanager
def locked(options: InstanceOptions) -> Iterator[InstanceLock]:
    """Hold the state directory; the lock takes further ones, and ends with the block.

    Raises:
        ProgramError: another process holds it, or it cannot be made.
    """
    lock = InstanceLock()
    try:
        with sentence():
            make_and_lock(options.run_dir, lock)
        yield lock
    finally:
        lock.release()


@contextmanager
def sentence() -> Iterator[None]:
    """Turn what the kernel refuses, in a directory that is needed, into a ProgramError."""
    try:
        yield
    except AlreadyRunning as error:
        raise ProgramError(str(error)) from None
    except PermissionError as error:
        raise ProgramError(f"{error.filename}: {error.strerror}: run the agent as root") from None
    except OSError as error:
        raise ProgramError(f"{error.filename2 or error.filename}: {error.strerror}") from None


def entries(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return what an agent made in a state directory, and what somebody else did, by name."""
    ours: list[Path] = []
    others: list[Path] = []
    for path in sorted(directory.iterdir()):
        (ours if _is_ours(path) else others).append(path)
    return ours, others


def _is_ours(path: Path) -> bool:
    name = name_of_record(path.name)
    # Manifests of a person have such a directory, too.
    if name in COPIES and path.is_dir() and not path.is_symlink():
        return all(is_copy(entry.name) for entry in path.iterdir())
    if name == ENDPOINTS and path.is_dir() and not path.is_symlink():
        return all(is_endpoint_file(entry.name) for entry in path.iterdir())
    return name in NAMES or (name == ENDPOINTS and path.name.endswith(BROKEN))


def _refuse_directory_of_others(directory: Path) -> None:
    """A slip such as `--state-dir /var/lib` must not end with a cleanup of it. Who has a record of
    an agent had one before.
    """
    _, others = entries(directory)
    if others and not (directory / PINS).exists():
        raise ProgramError(
            f"{directory} has what no agent made ({others[0].name}) and no record of an agent:"
            " name a directory of its own with --state-dir"
        )


def make_and_lock(directory: Path, lock: InstanceLock) -> None:
    """Make a directory that is ours alone, and lock it; a cleanup may remove it in between.

    Raises: AlreadyRunning, ProgramError, OSError.
    """
    while not lock.holds(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        own_directory(directory)
        _refuse_directory_of_others(directory)
        try:
            lock.acquire(directory)
        except FileNotFoundError:
            continue


class ControlSocket:
    """Serves on the socket in the state directory for as long as the agent runs."""

    def __init__(self, config: AgentConfig, lock: InstanceLock, health: HealthReporter) -> None:
        """Raises: OSError."""
        self._config, self._lock, self._health = config, lock, health
        self._mounts = mounts_of(config.run_dir)
        self._listener = unix_socket(config.socket_path)
        self._inode = os.stat(config.socket_path).st_ino
        self._state = "in its place"

    async def run(self, app: ASGIApp) -> None:
        """Serve until cancelled, on a new socket whenever the one there is goes."""
        while True:
            async with anyio.create_task_group() as group:
                group.start_soon(serve, app, self._listener)
                await self._gone()
                group.cancel_scope.cancel()
            await self._make_anew()

    async def _gone(self) -> None:
        """Wait until the socket is gone; records that are gone are written again meanwhile."""
        while True:
            with PathWatch(self._paths()) as watch:
                if not self._is_in_place():
                    return
                try:
                    self._remember()
                except OSError as error:
                    text = "what was mounted or pinned here is not on record for a cleanup"
                    self._health.degraded(text, error)
                    await watch.wait(AGAIN_S)
                    continue
                self._health.ok(self._state)
                await watch.wait()

    def _paths(self) -> list[Path]:
        directory = self._config.run_dir
        return [self._config.socket_path, directory / RECORD, directory / PINS]

    def _remember(self) -> None:
        """Raises: OSError."""
        remember_mounts(self._config.run_dir, self._mounts)
        remember_pins(self._config.run_dir, self._config.pin_dir)

    def _is_in_place(self) -> bool:
        try:
            found = os.stat(self._config.socket_path)
        except OSError:
            return False
        return found.st_ino == self._inode and self._lock.holds(self._config.run_dir)

    async def _make_anew(self) -> None:
        path = self._config.run_dir
        while True:
            with PathWatch(self._paths()) as watch:
                try:
                    self._make()
                except (OSError, ProgramError, AlreadyRunning) as error:
                    text = "is gone and cannot be made anew: no command reaches this agent"
                    log.error(f"the state directory {text}", path=str(path), error=str(error))
                    self._health.degraded(f"{path} {text}", error)
                    await watch.wait(AGAIN_S)
                    continue
            log.warning(
                "the state directory or its socket was gone and is made anew", path=str(path)
            )
            self._state = "was gone, and is made anew"
            return

    def _make(self) -> None:
        config = self._config
        make_and_lock(config.run_dir, self._lock)
        self._remember()
        self._listener = unix_socket(config.socket_path)
        self._inode = os.stat(config.socket_path).st_ino

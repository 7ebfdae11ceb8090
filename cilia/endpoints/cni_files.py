# SPDX-License-Identifier: Apache-2.0
"""The plugin and the list of the container runtime, put in place when the agent can serve.

The list is what makes a node ready: a runtime that finds it asks for pods. So it comes last, when
the endpoints of the run before are known, the socket is served and there is a pool. It stays when
the agent stops: requests then wait for the next one. While `--cni-exclusive` holds, lists of other
networks are set aside also when they come later.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import structlog

from cilia.datapath.chaining_options import PORTMAP
from cilia.endpoints.cni import conflist
from cilia.endpoints.cni.conflist import ConflistError
from cilia.endpoints.cni.forwarder import NAME, ForwarderError
from cilia.endpoints.options import EndpointOptions
from cilia.endpoints.state_files import CNI_FILES
from cilia.ipam.pools import NodePools
from cilia.linux.path_watch import PathWatch
from cilia.linux.records import read_record, write_record
from cilia.program.health import HealthReporter
from statedb import DB, WatchSet

__all__ = ["CNIFiles", "remove_files"]

log = structlog.get_logger("cni")

#: Files that somebody took or changed are put back after this time at the latest.
LOOK_AGAIN_S: Final = 60.0


class Record(msgspec.Struct, frozen=True):
    """The directories that an agent wrote to, kept in its state directory for `cilia cleanup`."""

    lists: str = ""
    programs: str = ""


def remember(run_dir: Path, lists: Path | None, programs: Path | None) -> None:
    """Write down where files are about to be put. Raises: OSError."""
    record = Record(str(lists or ""), str(programs or ""))
    if read_record(run_dir / CNI_FILES, Record) != record:
        write_record(run_dir / CNI_FILES, record)


def remove_files(run_dir: Path) -> list[str]:
    """Take the list and the plugin away, and give lists back that were set aside; return what was
    done, a line each. Raises: OSError.
    """
    record = read_record(run_dir / CNI_FILES, Record)
    if record is None:
        return []
    done = []
    lists, program = Path(record.lists), Path(record.programs) / NAME
    if record.lists and conflist.remove(lists):
        done.append(str(lists / conflist.FILE))
        done += [f"given back: {path}" for path in conflist.give_back(lists)]
    if record.programs and program.is_file():
        program.unlink()
        done.append(str(program))
    return done


class CNIFiles:
    """One task calls `run`."""

    def __init__(
        self,
        db: DB,
        options: EndpointOptions,
        pools: NodePools,
        health: HealthReporter,
    ) -> None:
        self._db = db
        self._options = options
        self._pools = pools
        self._health = health

    async def run(self, ready: anyio.Event) -> None:
        """Keep the files in place for ever, from when `ready` is set."""
        await ready.wait()
        options = self._options
        watched = [path for path in (options.cni_conf_path, options.cni_bin_path) if path]
        if not watched:
            return
        if not options.is_behind:
            await self._pool()
        while True:
            with PathWatch(watched, contents=watched) as watch:
                await self._look()
                await watch.wait(LOOK_AGAIN_S)

    async def _pool(self) -> None:
        """Wait until there is a pool."""
        while True:
            watches = WatchSet()
            if self._db.look(partial(self._pools, watches=watches)):
                return
            await watches.wait()

    async def _look(self) -> None:
        try:
            changed = await anyio.to_thread.run_sync(self._put)
        except (OSError, ConflistError, ForwarderError) as error:
            self._health.degraded("a file of the container runtime cannot be written", error)
            return
        if changed:
            log.info("files of the container runtime are in place", files=changed)
        self._health.ok("plugin and list of the container runtime are in place")

    def _put(self) -> list[str]:
        """Write what is missing; return what was written. The plugin comes before the list."""
        options, changed = self._options, []
        program, directory = options.cni_bin_path, options.cni_conf_path
        remember(options.run_dir, directory, program)
        if program is not None and conflist.install_program(program):
            changed.append(str(program))
        if directory is not None:
            if conflist.write(directory, self._content()):
                changed.append(str(directory / conflist.FILE))
            if options.cni_exclusive:
                changed += map(str, conflist.set_aside(directory))
        return changed

    def _content(self) -> bytes:
        """Raises: OSError, ConflistError."""
        custom: Path | None = self._options.read_cni_conf
        if custom is not None:
            return conflist.custom(custom)
        options, socket = self._options, self._options.cni_socket_path
        if options.is_behind and options.cni_conf_path is not None:
            network, mode = options.chaining_network, options.cni_chaining_mode
            return conflist.spliced(options.cni_conf_path, network, socket, mode)
        if self._options.cni_chaining_mode != PORTMAP:
            return conflist.rendered(socket)
        if (programs := self._options.cni_bin_path) is not None:
            conflist.require_program(programs, PORTMAP)
        return conflist.rendered(socket, chained=[conflist.PORTMAP])

# SPDX-License-Identifier: Apache-2.0
"""The identity that is in force of an endpoint gets into its file, and never brings a file back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from cilia.endpoints.cni.turns import Turns
from cilia.endpoints.saved import SavedEndpoints
from cilia.endpoints.saving import EndpointFiles
from cilia.endpoints.state_files import ENDPOINTS
from cilia.linux.path_watch import PathWatch
from statedb import DB
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState, new_endpoints_table
from tests.patience import PATIENCE

WEB, OTHER = ("k8s:app=web",), ("k8s:app=db",)
EP = Endpoint(
    id=7,
    attachment=Attachment("cilia", "c", "eth0"),
    namespace="test",
    pod="web",
    device="lxc7",
    node_mac=bytes(6),
    mac=bytes(6),
    created_at=1.0,
    state=EndpointState.WAITING_FOR_IDENTITY,
)


class Files:
    def __init__(self, directory: Path) -> None:
        self.db = DB()
        self.table = new_endpoints_table(self.db)
        self.turns = Turns()
        self.saved = SavedEndpoints(directory)
        self.saved.make_directory()
        self.directory = directory / ENDPOINTS
        self.job = EndpointFiles(self.db, self.table, self.saved, self.turns)

    def put(self, ep: Endpoint) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.table.insert(wtxn, ep)

    def identities(self) -> dict[int, tuple[tuple[str, ...], int]]:
        """What the files say; `SavedEndpoints.read` is for a start, when nobody writes."""
        forms = [json.loads(path.read_bytes()) for path in self.directory.glob("[!.]*.json")]
        return {
            form["id"]: (tuple(form.get("labels", ())), form.get("identity", 0)) for form in forms
        }

    async def until(self, condition: Callable[[], bool]) -> None:
        with PathWatch([self.directory], [self.directory]) as watch, anyio.fail_after(5 * PATIENCE):
            while not condition():
                await watch.wait()


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Files]:
    async with anyio.create_task_group() as group:
        made = Files(directory)
        group.start_soon(made.job.run)
        group.start_soon(made.job.keep)
        yield made
        group.cancel_scope.cancel()


def with_identity(labels: tuple[str, ...], number: int) -> Endpoint:
    return msgspec.structs.replace(EP, labels=labels, identity=number)


async def test_a_file_follows_the_identity(tmp_path: Path) -> None:
    async with running(tmp_path) as files:
        files.saved.write(EP)
        files.put(EP)
        files.put(with_identity(WEB, 300))
        await files.until(lambda: files.identities() == {7: (WEB, 300)})
        files.put(with_identity(OTHER, 400))
        await files.until(lambda: files.identities() == {7: (OTHER, 400)})


async def test_a_request_that_deletes_has_its_turn_alone(tmp_path: Path) -> None:
    """The change of the identity came first, and is written after the file went."""
    async with running(tmp_path) as files:
        async with files.turns.take(EP.device):
            files.put(with_identity(WEB, 300))
            with anyio.fail_after(5 * PATIENCE):
                while not files.turns.waiting(EP.device):
                    await anyio.sleep(0)  # the job takes its turn within a few steps
            with files.db.write_txn(files.table) as wtxn:
                files.table.delete(wtxn, EP)
        # Another endpoint is written after it: what was to be done for the first one is done.
        other = msgspec.structs.replace(with_identity(WEB, 300), id=8, device="lxc8")
        files.put(other)
        await files.until(lambda: 8 in files.identities())
        assert set(files.identities()) == {8}


async def test_what_is_as_it_was_is_not_written(tmp_path: Path) -> None:
    async with running(tmp_path) as files:
        ep = with_identity(WEB, 300)
        files.saved.write(ep)
        path = files.directory / "7.json"
        before = path.stat().st_ino
        files.put(ep)
        files.put(msgspec.structs.replace(ep, id=8, device="lxc8"))
        await files.until(lambda: 8 in files.identities())
        assert path.stat().st_ino == before


@pytest.mark.parametrize("how", ["removed", "broken", "a directory", "all gone"])
async def test_a_file_that_somebody_takes_is_written_again(tmp_path: Path, how: str) -> None:
    async with running(tmp_path) as files:
        files.put(with_identity(WEB, 300))
        await files.until(lambda: files.identities() == {7: (WEB, 300)})
        path = files.directory / "7.json"
        match how:
            case "removed":
                path.unlink()
            case "broken":
                path.write_bytes(b"{")
            case "a directory":
                path.unlink()
                path.mkdir()
            case "all gone":
                files.directory.rename(tmp_path / "elsewhere")
        with PathWatch([path], [tmp_path]) as watch, anyio.fail_after(5 * PATIENCE):
            while not path.is_file() or path.read_bytes() == b"{":
                await watch.wait(0.1)
        assert files.identities()[7] == (WEB, 300)


async def test_a_file_of_an_endpoint_that_is_gone_stays_away(tmp_path: Path) -> None:
    async with running(tmp_path) as files:
        files.put(with_identity(WEB, 300))
        files.put(msgspec.structs.replace(with_identity(WEB, 300), id=8, device="lxc8"))
        await files.until(lambda: set(files.identities()) == {7, 8})
        with files.db.write_txn(files.table) as wtxn:
            files.table.delete(wtxn, EP)
        files.saved.remove(7)
        (files.directory / "8.json").unlink()
        await files.until(lambda: 8 in files.identities())
        assert set(files.identities()) == {8}

# SPDX-License-Identifier: Apache-2.0
"""Objects as files: what an API server promises, kept by files of several writers."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from cilia.k8s.crds.identities import CiliumIdentity, identity_form
from cilia.k8s.errors import StatusError, StorageFailed
from cilia.k8s.object_files import ObjectFiles, object_files_source
from cilia.k8s.object_writer import Form, object_path
from tests.cilia.k8s.test_manifests import Reader
from tests.e2e.world import REPOSITORY
from tests.full_disk import small_disk

pytestmark = pytest.mark.usefixtures("short_grace")

LABELS = ("k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop")
PATH = object_path(CiliumIdentity, "300")
LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/lock"


@pytest.fixture
def files(tmp_path: Path) -> ObjectFiles:
    return ObjectFiles(tmp_path)


def identity(number: int = 300) -> Form:
    return identity_form(number, LABELS)


async def refused(work: Any) -> int:
    """The code of a refusal."""
    with pytest.raises(StatusError) as failed:
        await work
    return failed.value.code


async def test_what_is_made_is_read_again(files: ObjectFiles) -> None:
    made = await files.create(PATH, identity())
    assert made["security-labels"] == {"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "shop"}
    assert made["metadata"]["labels"] == {"io.kubernetes.pod.namespace": "shop"}
    assert made["metadata"]["uid"]
    assert json.loads(await files.fetch(PATH)) == made
    assert [path.name for path in files.directory.iterdir()] == [
        "ciliumidentities.cilium.io_300.json"
    ]


async def test_a_name_is_given_once(files: ObjectFiles) -> None:
    await files.create(PATH, identity())
    assert await refused(files.create(PATH, identity())) == 409


async def test_a_version_is_replaced_once(files: ObjectFiles) -> None:
    first = await files.create(PATH, identity())
    second = await files.replace(PATH, {**first, "security-labels": {"k8s:app": "db"}})
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["metadata"]["creationTimestamp"] == first["metadata"]["creationTimestamp"]
    versions = [int(form["metadata"]["resourceVersion"]) for form in (first, second)]
    assert versions[0] < versions[1]
    assert await refused(files.replace(PATH, first)) == 409
    assert json.loads(await files.fetch(PATH))["security-labels"] == {"k8s:app": "db"}
    assert await refused(files.replace(PATH, identity())) == 422, "it names no version"


async def test_an_object_that_says_no_time_of_creation_is_one_all_the_same(
    files: ObjectFiles,
) -> None:
    """A person wrote it: who reads it and who writes it have to agree."""
    made = await files.create(PATH, identity())
    path = files.directory / "ciliumidentities.cilium.io_300.json"
    del made["metadata"]["creationTimestamp"]
    path.write_text(json.dumps(made))
    second = await files.replace(PATH, made)
    await files.delete(PATH, second["metadata"]["uid"], {})
    assert not path.exists()


async def test_only_the_object_that_was_seen_is_deleted(files: ObjectFiles) -> None:
    first = await files.create(PATH, identity())
    uid, version = first["metadata"]["uid"], first["metadata"]["resourceVersion"]
    await files.replace(PATH, first)
    assert await refused(files.delete(PATH, uid, {}, version)) == 409
    await files.delete(PATH, uid, {})
    assert await refused(files.fetch(PATH)) == 404
    assert await refused(files.delete(PATH, uid, {})) == 404
    other = await files.create(PATH, identity())
    assert await refused(files.delete(PATH, uid, {})) == 409
    assert int(other["metadata"]["resourceVersion"]) > int(version)


async def test_objects_of_namespaces_and_other_groups_are_kept_apart(files: ObjectFiles) -> None:
    lease: Form = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "lock"},
    }
    made = await files.create(LEASE, lease)
    assert made["metadata"]["namespace"] == "kube-system"
    await files.create(LEASE.replace("kube-system", "other"), lease)
    await files.create(PATH, identity())
    assert json.loads(await files.fetch(LEASE)) == made


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("/apis/cilium.io/v2/ciliumidentities/../300", {}),
        ("/apis/cilium.io/v2/ciliumidentities/3_0", {}),
        ("/apis/cilium.io/v2/ciliumidentities", {}),
        (PATH, {"metadata": {"name": "301"}}),
        (PATH, {"metadata": {"name": "300", "namespace": "shop"}}),
        (PATH, {"apiVersion": "cilium.io/v3"}),
        (PATH, {"kind": ""}),
        (PATH, {"metadata": None}),
    ],
)
async def test_what_is_no_object_of_its_path_is_refused(
    files: ObjectFiles, path: str, changes: Form
) -> None:
    assert await refused(files.create(path, identity() | changes)) == 422
    assert list(files.directory.iterdir()) == []


async def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each adds to what it read, and reads again when another one was quicker."""
    await ObjectFiles(tmp_path).create(PATH, identity() | {"security-labels": {"n": "0"}})
    refusals = Counter[int]()

    async def add(files: ObjectFiles) -> None:
        added = 0
        while added < 5:
            form = json.loads(await files.fetch(PATH))
            form["security-labels"]["n"] = str(int(form["security-labels"]["n"]) + 1)
            try:
                await files.replace(PATH, form)
            except StatusError as failure:
                refusals[failure.code] += 1
            else:
                added += 1

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(add, ObjectFiles(tmp_path))
    final = json.loads(await ObjectFiles(tmp_path).fetch(PATH))
    assert final["security-labels"]["n"] == "20"
    assert list(refusals) == [409], "they met, and that alone was refused"


WRITER = """
import anyio, json, sys
from pathlib import Path
from cilia.k8s.object_files import ObjectFiles

async def main():
    files, path = ObjectFiles(Path(sys.argv[1])), sys.argv[2]
    while True:
        form = json.loads(await files.fetch(path))
        form["security-labels"]["n"] = str(int(form["security-labels"]["n"]) + 1)
        await files.replace(path, form)
        print(form["security-labels"]["n"], flush=True)

anyio.run(main)
"""


async def test_a_kill_leaves_the_old_object_or_the_new_one(tmp_path: Path) -> None:
    files = ObjectFiles(tmp_path)
    await files.create(PATH, identity() | {"security-labels": {"n": "0"}})
    rng = random.Random(1)
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), PATH]
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))  # the moment of the kill
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().split()
        said = int(lines[-1]) if lines else 0
        form = json.loads(await files.fetch(PATH))
        assert int(form["security-labels"]["n"]) >= said
        await files.replace(PATH, form)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


async def test_a_lock_that_is_not_given_back_ends_the_wait(tmp_path: Path) -> None:
    files = ObjectFiles(tmp_path, lock_wait_s=0.05)
    with locked(tmp_path), pytest.raises(StorageFailed, match=f"by pid {os.getpid()}"):
        await files.create(PATH, identity())
    await files.create(PATH, identity())
    with locked(tmp_path):
        await files.fetch(PATH)


async def test_a_broken_object_is_told_and_harms_no_other(files: ObjectFiles) -> None:
    await files.create(PATH, identity())
    (files.directory / "ciliumidentities.cilium.io_300.json").write_text('{"metadata": {"na')
    for work in (
        partial(files.fetch, PATH),
        partial(files.replace, PATH, identity()),
        partial(files.delete, PATH, "", {}),
    ):
        with pytest.raises(StorageFailed, match=r"_300\.json is broken .*: mend or remove it"):
            await work()
    other = object_path(CiliumIdentity, "301")
    await files.create(other, identity(301))
    await files.fetch(other)


@pytest.mark.root
async def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path) as fill:
        files = ObjectFiles(tmp_path)
        first = await files.create(PATH, identity())
        fill()
        with pytest.raises(StorageFailed, match="No space left on device"):
            await files.replace(PATH, first | {"security-labels": {"k8s:app": "x" * 8192}})
        with pytest.raises(StorageFailed, match="No space left on device"):
            await files.create(object_path(CiliumIdentity, "301"), identity(301))
        assert json.loads(await files.fetch(PATH)) == first


async def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    files = ObjectFiles(tmp_path / "gone")
    with pytest.raises(StorageFailed, match="gone: No such file or directory"):
        await files.create(PATH, identity())


# -- readers --


async def test_readers_follow_what_writers_do(files: ObjectFiles) -> None:
    source = object_files_source(files.directory, CiliumIdentity)
    await files.create(PATH, identity())
    await files.create(
        LEASE,
        {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "lock"}},
    )
    async with anyio.create_task_group() as group:
        reader, problems = Reader(source.watch(CiliumIdentity)), Reader(source.watch())
        group.start_soon(source.run)
        await reader.until(lambda: reader.listed)
        assert reader.names == ["300"]
        other = object_path(CiliumIdentity, "301")
        made = await files.create(other, identity(301))
        await reader.until(lambda: reader.names == ["300", "301"])
        broken = files.directory / "ciliumidentities.cilium.io_300.json"
        broken.write_text("{")
        await problems.until(lambda: bool(problems.complaints))
        assert reader.names == ["300", "301"], "what it was stays in force"
        await files.delete(other, made["metadata"]["uid"], {})
        await reader.until(lambda: reader.names == ["300"])
        assert [name for name in problems.problems if "lease" in name] == []
        reader.task.cancel()
        problems.task.cancel()
        group.cancel_scope.cancel()

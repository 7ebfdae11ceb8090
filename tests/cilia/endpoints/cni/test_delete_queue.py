# SPDX-License-Identifier: Apache-2.0
"""A DEL is carried out or the runtime is told, whatever happens to the agent, the program, the
queue's directory and its disk.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from cilia.agent.state_directory import make_and_lock
from cilia.endpoints.cni.delete_queue import DeleteQueue
from cilia.endpoints.cni.errors import CNIError
from cilia.endpoints.cni.requests import Command, Request, parse
from cilia.endpoints.cni.server import Server
from cilia.endpoints.cni.wire import split
from cilia.linux.lock import InstanceLock
from cilia.linux.mounts import mount
from tests.cilia.endpoints.cni import peers
from tests.cilia.endpoints.cni.recorder import Recorder, serving
from tests.cilia.endpoints.cni.runtime import Runtime, until
from tests.cilia.endpoints.cni.traced import killed_at

FILE = "cilia:0f3c:eth0.delete"
MOST = 256
_libc = ctypes.CDLL(None, use_errno=True)


def names(runtime: Runtime) -> list[str]:
    return sorted(path.name for path in runtime.queue.iterdir() if path.name != "lockfile")


def queued(path: Path) -> Request:
    return parse(*split(path.read_bytes()))


def test_a_file_has_the_request(runtime: Runtime) -> None:
    assert runtime.call("DEL", runtime.config(mtu=1400), CNI_ARGS="K8S_POD_NAME=web") == (0, "")
    assert names(runtime) == [FILE]
    request = queued(runtime.queue / FILE)
    assert (request.command, request.attachment) == (Command.DEL, ("cilia", "0f3c", "eth0"))
    assert request.args == {"K8S_POD_NAME": "web"}
    assert request.config.mtu == 1400
    for path, mode in ((runtime.queue, 0o700), (runtime.queue / FILE, 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_each_attachment_has_one_file(runtime: Runtime) -> None:
    for _ in range(2):
        assert runtime.call("DEL").status == 0
    assert runtime.call("DEL", CNI_IFNAME="net1").status == 0
    assert runtime.call("DEL", CNI_CONTAINERID="x" * 128, CNI_IFNAME="y" * 15).status == 0
    assert runtime.call("DEL", runtime.config(name="n" * 100)).status == 0
    longest = runtime.call(
        "DEL", runtime.config(name="n" * 100), CNI_CONTAINERID="x" * 128, CNI_IFNAME="y" * 15
    )
    assert longest.status == 0
    assert len(names(runtime)) == 5
    attachments = DeleteQueue(runtime.queue).attachments()
    assert len(attachments) == 5
    for attachment in attachments:
        name = ":".join(attachment) + ".delete"
        assert queued(runtime.queue / name).attachment == attachment


def test_the_directory_is_made_when_no_agent_was_there(program: Path, tmp_path: Path) -> None:
    runtime = Runtime(program, tmp_path / "cilia" / "cni.sock")
    assert runtime.call("DEL").status == 0
    assert stat.S_IMODE(runtime.queue.parent.stat().st_mode) == 0o700
    assert names(runtime) == [FILE]
    lock = InstanceLock()
    make_and_lock(runtime.queue.parent, lock)  # the first agent takes it for its own
    lock.release()
    assert names(runtime) == [FILE]


@pytest.mark.parametrize(
    ("code", "named", "variables"),
    [
        (4, "CNI_CONTAINERID", {"CNI_CONTAINERID": None}),
        (4, "CNI_CONTAINERID", {"CNI_CONTAINERID": "../../etc/x"}),
        (4, "CNI_CONTAINERID", {"CNI_CONTAINERID": "x" * 129}),
        (4, "CNI_IFNAME", {"CNI_IFNAME": ""}),
        (4, "CNI_IFNAME", {"CNI_IFNAME": "a/b"}),
        (4, "CNI_IFNAME", {"CNI_IFNAME": "a:b"}),
    ],
)
def test_a_wrong_name_is_refused(
    runtime: Runtime, code: int, named: str, variables: dict[str, str | None]
) -> None:
    answer = runtime.call("DEL", None, **variables)
    assert answer.code == code
    assert answer.json["msg"].startswith(named)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "n" * 101, "\\u0041", "a:b"])
def test_a_wrong_network_is_refused(runtime: Runtime, name: str) -> None:
    answer = runtime.call("DEL", runtime.config(name=name))
    assert answer.code == 7
    assert answer.json["msg"].startswith("name ")


def test_a_full_queue_takes_only_what_it_has(runtime: Runtime) -> None:
    runtime.queue.mkdir()
    for number in range(MOST - 1):
        (runtime.queue / f"cilia:{number}:eth0.delete").touch()
    for other in ("lockfile", ".new", f"{FILE}.broken", "x"):
        (runtime.queue / other).touch()
    assert runtime.call("DEL").status == 0
    answer = runtime.call("DEL", CNI_CONTAINERID="more")
    assert answer.code == 11
    assert f"cannot be kept for it in {runtime.queue} (it is full)" in answer.json["msg"]
    assert runtime.call("DEL").status == 0
    assert len([name for name in names(runtime) if name.endswith(".delete")]) == MOST


def test_many_at_once_fill_the_queue_and_no_more(runtime: Runtime) -> None:
    runtime.queue.mkdir()
    for number in range(MOST - 20):
        (runtime.queue / f"cilia:{number}:eth0.delete").touch()
    processes = [runtime.start("DEL", CNI_CONTAINERID=f"c{number}") for number in range(40)]
    outputs = [process.communicate()[0] for process in processes]
    assert sorted(process.returncode for process in processes) == [0] * 20 + [1] * 20
    assert sum(b"it is full" in output for output in outputs) == 20
    assert len([name for name in names(runtime) if name.endswith(".delete")]) == MOST


@pytest.mark.parametrize("kind", ["file", "link", "lockfile", "new"])
def test_what_cannot_be_written_to_is_told(runtime: Runtime, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    match kind:
        case "file":
            runtime.queue.touch()
        case "link":
            runtime.queue.symlink_to(elsewhere)
        case "lockfile":
            runtime.queue.mkdir()
            (runtime.queue / "lockfile").symlink_to(elsewhere / "lockfile")
        case "new":
            runtime.queue.mkdir()
            (runtime.queue / ".new").symlink_to(elsewhere / "new")
    answer = runtime.call("DEL")
    if kind == "new":  # it is ours to remove
        assert answer.code == 11
        answer = runtime.call("DEL")
        assert (answer.status, names(runtime)) == (0, [FILE])
    else:
        assert answer.code == 11
        assert str(runtime.queue) in answer.json["msg"]
    assert list(elsewhere.iterdir()) == []


def test_a_missing_directory_is_told(program: Path, tmp_path: Path) -> None:
    runtime = Runtime(program, tmp_path / "a" / "b" / "cni.sock")
    answer = runtime.call("DEL")
    assert answer.code == 11
    assert "(No such file or directory)" in answer.json["msg"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of four pages."""
    directory = tmp_path / "small"
    mount("tmpfs", directory)
    assert _libc.mount(b"none", os.fsencode(directory), b"tmpfs", 32, b"size=16k") == 0
    yield directory
    _libc.umount2(os.fsencode(directory), 2)


@pytest.mark.root
def test_a_full_disk_is_told_and_leaves_nothing(program: Path, small: Path) -> None:
    runtime = Runtime(program, small / "cni.sock")
    answer = runtime.call("DEL", runtime.config(padding="x" * 100_000))
    assert answer.code == 11
    assert "(No space left on device)" in answer.json["msg"]
    assert names(runtime) == []
    assert runtime.call("DEL").status == 0
    longer = runtime.call("DEL", runtime.config(padding="x" * 100_000))
    assert longer.code == 11
    assert names(runtime) == [FILE]
    assert queued(runtime.queue / FILE).attachment == ("cilia", "0f3c", "eth0")


def test_a_kill_at_any_system_call_leaves_a_whole_request_or_none(runtime: Runtime) -> None:
    environment = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": "0f3c",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    assert runtime.call("DEL", CNI_NETNS=None).status == 0
    whole = (runtime.queue / FILE).read_bytes()
    left: set[tuple[str, ...]] = set()
    for stop in range(1000):
        for path in [*runtime.queue.iterdir()]:
            path.unlink()
        if not killed_at(stop, runtime.program, environment, runtime.config()):
            break
        if FILE in names(runtime):
            assert (runtime.queue / FILE).read_bytes() == whole
        if tuple(names(runtime)) not in left:
            left.add(tuple(names(runtime)))
            assert runtime.call("DEL", CNI_NETNS=None).status == 0
            assert names(runtime) == [FILE]
            assert (runtime.queue / FILE).read_bytes() == whole
    assert left == {(), (".new",), (FILE,)}  # all steps were seen


def test_a_request_waits_for_the_lock_and_then_finds_the_agent(runtime: Runtime) -> None:
    runtime.queue.mkdir()
    with open(runtime.queue / "lockfile", "w") as lockfile:
        fcntl.flock(lockfile, fcntl.LOCK_EX)
        process = runtime.start("DEL")
        until_locking(process.pid)
        with peers.listening(runtime.socket, peers.answers(0, b"")):
            fcntl.flock(lockfile, fcntl.LOCK_UN)
            assert process.communicate() == (b"", b"")
    assert process.returncode == 0
    assert names(runtime) == []


def until_locking(pid: int) -> None:
    """Return when a process waits for a lock of flock(2), which /proc/locks shows."""
    pattern = re.compile(rf"-> FLOCK .* {pid} ")
    until(lambda: pattern.search(Path("/proc/locks").read_text()) is not None)


def test_waiting_for_the_lock_ends(impatient: Path, tmp_path: Path) -> None:
    runtime = Runtime(impatient, tmp_path / "cni.sock")
    runtime.queue.mkdir()
    with open(runtime.queue / "lockfile", "w") as lockfile:
        fcntl.flock(lockfile, fcntl.LOCK_EX)
        answer = runtime.call("DEL")
    assert answer.code == 11
    assert "(Timer expired)" in answer.json["msg"]


async def test_the_queue_is_worked_off_before_anything_is_served(
    runtime: Runtime, plugin: Recorder
) -> None:
    """A program that wanted to queue meanwhile is served."""
    for container in ("a", "b", "c"):
        assert runtime.call("DEL", CNI_CONTAINERID=container).status == 0
    begun, end = anyio.Event(), anyio.Event()

    async def slowly(_: Request) -> None:
        begun.set()
        await end.wait()

    plugin.work[Command.DEL] = slowly
    async with anyio.create_task_group() as group:

        async def late() -> None:
            await begun.wait()
            assert not runtime.socket.exists()
            process = runtime.start("DEL", CNI_CONTAINERID="late")
            await anyio.to_thread.run_sync(until_locking, process.pid)
            end.set()
            assert await anyio.to_thread.run_sync(process.communicate) == (b"", b"")
            assert process.returncode == 0
            assert names(runtime) == []

        group.start_soon(late)
        async with serving(runtime.socket, plugin):
            while len(plugin.requests) < 4:
                await anyio.sleep(0.01)
    *first, last = [request.container_id for request in plugin.requests]
    assert (sorted(first), last) == (["a", "b", "c"], "late")


async def test_what_is_broken_is_set_aside_and_told(runtime: Runtime, plugin: Recorder) -> None:
    assert runtime.call("DEL", CNI_CONTAINERID="good").status == 0
    good = (runtime.queue / "cilia:good:eth0.delete").read_bytes()
    broken = {
        "no-attachment.delete": good,
        "a:b:c:d.delete": good,
        "a:empty:e.delete": b"",
        "a:cut:e.delete": good[:-1],
        "a:long:e.delete": good + b" ",
        "a:other-magic:e.delete": b"x" + good[1:],
        "a:other-version:e.delete": b"CNI\2" + good[4:],
        "a:huge:e.delete": b"CNI\1" + b"\xff" * 8,
        "cilia:another:eth0.delete": good,
        "cilia:add:eth0.delete": good.replace(b"CNI_COMMAND=DEL", b"CNI_COMMAND=ADD"),
        "cilia:text:eth0.delete": good.replace(b'"name"', b'"nome"'),
        "\udcff.delete": b"\xff",
    }
    for name, content in broken.items():
        (runtime.queue / name).write_bytes(content)
    os.mkfifo(runtime.queue / "pipe.delete")
    (runtime.queue / "directory.delete").mkdir()
    (runtime.queue / "link.delete").symlink_to(runtime.queue / "cilia:good:eth0.delete")
    with open(runtime.queue / "sparse.delete", "wb") as sparse:
        sparse.truncate(1 << 40)
    (runtime.queue / "note.txt").touch()
    kinds = {"pipe.delete", "directory.delete", "link.delete", "sparse.delete"}
    with capture_logs() as logs:
        async with serving(runtime.socket, plugin):
            assert (await runtime.ask("STATUS")).status == 0
    assert [request.container_id for request in plugin.requests if request.container_id] == ["good"]
    assert names(runtime) == sorted([*(f"{n}.broken" for n in (*broken, *kinds)), "note.txt"])
    told = [line["path"] for line in logs if "set aside" in line["event"]]
    assert len(told) == len(broken) + len(kinds)


async def test_a_request_that_fails_stays_and_stops_nobody(
    runtime: Runtime, plugin: Recorder
) -> None:
    """Until it is carried out its attachment is not added again."""
    for container in ("a", "b"):
        assert runtime.call("DEL", CNI_CONTAINERID=container).status == 0
    broken = True

    async def fail(request: Request) -> None:
        if broken and request.container_id == "a":
            raise CNIError(100, "the disk of addresses is full")

    plugin.work[Command.DEL] = fail
    with capture_logs() as logs:
        async with serving(runtime.socket, plugin):
            assert names(runtime) == ["cilia:a:eth0.delete"]
            answer = await runtime.ask("ADD", CNI_CONTAINERID="a")
            assert (answer.code, answer.json["msg"]) == (100, "the disk of addresses is full")
            assert (await runtime.ask("ADD", CNI_CONTAINERID="b")).status == 0
            assert names(runtime) == ["cilia:a:eth0.delete"]
            broken = False
            plugin.requests.clear()
            assert (await runtime.ask("ADD", CNI_CONTAINERID="a")).status == 0
            assert plugin.commands == ["DEL", "ADD"]
            assert names(runtime) == []
    assert any(line["event"] == "a queued DEL failed" for line in logs)


async def test_nothing_is_added_over_a_request_that_cannot_be_removed(
    runtime: Runtime, plugin: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start would carry it out again."""
    assert runtime.call("DEL").status == 0
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == FILE:
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    async with serving(runtime.socket, plugin):
        answer = await runtime.ask("ADD")
        assert (answer.code, "(Read-only file system): remove it" in answer.json["msg"]) == (
            5,
            True,
        )
        assert "ADD" not in plugin.commands
        monkeypatch.undo()
        assert (await runtime.ask("ADD")).status == 0


async def test_a_request_is_kept_until_it_is_carried_out(
    runtime: Runtime, plugin: Recorder
) -> None:
    """Also if the agent ends in the midst of it."""
    assert runtime.call("DEL").status == 0
    begun = anyio.Event()

    async def never(_: Request) -> None:
        begun.set()
        await anyio.sleep_forever()

    plugin.work[Command.DEL] = never
    async with anyio.create_task_group() as group:
        group.start_soon(Server(runtime.socket, plugin).serve)
        await begun.wait()
        group.cancel_scope.cancel()
    assert names(runtime) == [FILE]
    plugin.work.clear()
    async with serving(runtime.socket, plugin):
        assert names(runtime) == []
    assert plugin.commands == ["DEL", "DEL"]


async def test_requests_that_hang_do_not_keep_the_agent_from_serving(
    runtime: Runtime, plugin: Recorder
) -> None:
    for number in range(3):
        assert runtime.call("DEL", CNI_CONTAINERID=f"c{number}").status == 0

    async def hang(_: Request) -> None:
        await anyio.sleep_forever()

    plugin.work[Command.DEL] = hang
    async with serving(runtime.socket, plugin, {Command.DEL: 0.1}):
        assert (await runtime.ask("STATUS")).status == 0
        assert len(names(runtime)) == 3


async def test_what_is_queued_beside_an_agent_is_carried_out(
    runtime: Runtime, plugin: Recorder
) -> None:
    """The agent was too slow for the program, and goes on."""
    carried_out = anyio.Event()

    async def tell(_: Request) -> None:
        carried_out.set()

    plugin.work[Command.DEL] = tell
    async with serving(runtime.socket, plugin):
        other = Runtime(runtime.program, runtime.socket.with_name("nobody"))
        assert (await other.ask("DEL")).status == 0
        with anyio.fail_after(5):
            await carried_out.wait()
            while names(runtime):
                await anyio.sleep(0.01)


async def test_an_old_request_never_meets_a_new_add(runtime: Runtime, plugin: Recorder) -> None:
    """A container that starts again has the id that it had."""
    old = Runtime(runtime.program, runtime.socket.with_name("nobody"))
    server = Server(runtime.socket, plugin)
    started = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, started.set)
        await started.wait()
        assert (await old.ask("DEL")).status == 0
        assert (await runtime.ask("ADD")).status == 0
        assert plugin.commands == ["DEL", "ADD"]
        assert names(runtime) == []
        assert (await old.ask("DEL")).status == 0
        assert (await runtime.ask("DEL")).status == 0
        assert names(runtime) == []  # it is done
        group.cancel_scope.cancel()


async def test_an_agent_that_ends_leaves_its_requests_to_the_next(
    runtime: Runtime, plugin: Recorder
) -> None:
    begun = anyio.Event()

    async def never(_: Request) -> None:
        begun.set()
        await anyio.sleep_forever()

    plugin.work[Command.DEL] = plugin.work[Command.ADD] = never
    codes = {}

    async def call(command: str) -> None:
        codes[command] = (await runtime.ask(command, CNI_CONTAINERID=command)).status

    async with anyio.create_task_group() as group, serving(runtime.socket, plugin):
        for command in ("ADD", "DEL"):
            begun = anyio.Event()
            group.start_soon(call, command)
            await begun.wait()
    assert codes == {"ADD": 1, "DEL": 0}
    assert names(runtime) == ["cilia:DEL:eth0.delete"]


async def test_others_that_keep_the_lock_do_not_keep_the_agent_from_serving(
    runtime: Runtime, plugin: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cilia.endpoints.cni.delete_queue.LOCK_S", 0.1)
    assert runtime.call("DEL").status == 0
    with open(runtime.queue / "lockfile") as lockfile, capture_logs() as logs:
        fcntl.flock(lockfile, fcntl.LOCK_SH)
        async with serving(runtime.socket, plugin):
            assert plugin.commands == ["DEL"]
    assert any("keep the lock" in line["event"] for line in logs)


@pytest.mark.parametrize("kind", ["directory", "link", "loop", "socket"])
async def test_a_lock_that_cannot_be_opened_is_set_aside(tmp_path: Path, kind: str) -> None:
    """Nobody can hold it, and pods are waiting."""
    path = tmp_path / "lockfile"
    with socket.socket(socket.AF_UNIX) as listener:
        match kind:
            case "directory":
                (path / "below").mkdir(parents=True)
            case "link":
                path.symlink_to(tmp_path / "elsewhere")
            case "loop":
                path.symlink_to(path.name)
            case "socket":
                listener.bind(str(path))
        async with DeleteQueue(tmp_path).locked():
            assert path.is_file()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lockfile", "lockfile.broken"]

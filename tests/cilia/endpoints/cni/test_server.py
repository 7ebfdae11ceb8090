# SPDX-License-Identifier: Apache-2.0
"""Requests that the program hands over are carried out, whatever others send."""

from __future__ import annotations

import array
import json
import os
import re
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from cilia.endpoints.cni import server, wire
from cilia.endpoints.cni.errors import CNIError, Code
from cilia.endpoints.cni.forwarder import SOURCES
from cilia.endpoints.cni.requests import Command, Request
from cilia.endpoints.cni.results import IP, VERSIONS, Result, parsed
from cilia.program.errors import ProgramError
from tests.cilia.endpoints.cni.recorder import RESULT, Recorder, serving
from tests.cilia.endpoints.cni.runtime import CONFIG, NETNS, Answer, Runtime
from tests.patience import PATIENCE

PREVIOUS = {"ips": [{"address": "10.0.0.5/32"}]}
VALID = {"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}
VARIABLES = b"CNI_COMMAND=STATUS\0"


def descriptors() -> int:
    """Return how many sockets and namespaces this process has open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            count += target.startswith(("socket:", "net:"))
    return count


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the server go on until it has done what nothing tells of."""
    with anyio.fail_after(5 * PATIENCE):
        while not condition():
            await anyio.sleep(0.005)


def message(environment: bytes, config: bytes) -> bytes:
    """Return a request as the program writes it."""
    sizes = len(environment).to_bytes(4, "big") + len(config).to_bytes(4, "big")
    return b"CNI\1" + sizes + environment + config


def status_request() -> bytes:
    return message(VARIABLES, json.dumps(CONFIG).encode())


async def answered(peer: socket.socket) -> Answer:
    """Return what the server says."""

    def read() -> Answer:
        peer.settimeout(10)
        with peer.makefile("rb") as file:
            header = file.read(12)
            output = file.read(int.from_bytes(header[8:], "big"))
        return Answer(int.from_bytes(header[4:8], "big"), output.decode())

    return await anyio.to_thread.run_sync(read)


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        yield peer


async def test_add_has_the_request_and_gets_the_result(runtime: Runtime, plugin: Recorder) -> None:
    async with serving(runtime.socket, plugin):
        assert stat.S_IMODE(runtime.socket.stat().st_mode) == 0o600
        files = descriptors()
        answer = await runtime.ask("ADD", CNI_ARGS="K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop")
        assert descriptors() == files
    assert answer.status == 0, answer
    assert parsed(answer.json) == RESULT
    (request,) = plugin.requests
    assert request.attachment == ("cilia", "0f3c", "eth0")
    assert request.args == {"K8S_POD_NAME": "web", "K8S_POD_NAMESPACE": "shop"}
    assert request.netns == NETNS
    assert plugin.namespaces == [os.stat(NETNS).st_ino]


@pytest.mark.parametrize("version", VERSIONS)
async def test_results_have_the_version_of_the_configuration(
    runtime: Runtime, plugin: Recorder, version: str
) -> None:
    async with serving(runtime.socket, plugin):
        answer = await runtime.ask("ADD", runtime.config(cniVersion=version))
    assert answer.json["cniVersion"] == version
    assert ("version" in answer.json["ips"][0]) == (version < "1.0.0")


async def test_the_other_commands_say_nothing(runtime: Runtime, plugin: Recorder) -> None:
    async with serving(runtime.socket, plugin):
        assert await runtime.ask("DEL", CNI_NETNS=None) == (0, "")
        assert await runtime.ask("CHECK", runtime.config(prevResult=PREVIOUS)) == (0, "")
        assert await runtime.ask("STATUS") == (0, "")
        assert await runtime.ask("GC", runtime.config(**VALID)) == (0, "")
    assert plugin.commands == ["DEL", "CHECK", "STATUS", "GC"]
    deleted, checked, _, collected = plugin.requests
    assert deleted.netns_fd is None
    assert checked.prev_result == Result(ips=(IP(address="10.0.0.5/32"),))
    assert collected.valid_attachments == {("cilia", "a", "eth0")}


async def test_what_the_plugin_refuses_is_told_with_its_code(
    runtime: Runtime, plugin: Recorder
) -> None:
    async def refuse(_: Request) -> None:
        raise CNIError(Code.TRY_AGAIN_LATER, 'not yet: "é"\n', "more")

    plugin.work = dict.fromkeys(Command, refuse)
    async with serving(runtime.socket, plugin):
        for command in ("ADD", "DEL", "STATUS"):
            answer = await runtime.ask(command)
            assert answer.status == 1
            assert answer.json == {
                "cniVersion": "1.1.0",
                "code": 11,
                "msg": 'not yet: "é"\n',
                "details": "more",
            }


async def test_any_other_error_is_told_as_internal_and_logged(
    runtime: Runtime, plugin: Recorder
) -> None:
    async def fail(request: Request) -> None:
        raise KeyError(request.container_id)

    plugin.work[Command.ADD] = fail
    with capture_logs() as logs:
        async with serving(runtime.socket, plugin):
            files = descriptors()
            answer = await runtime.ask("ADD")
            assert (answer.code, descriptors()) == (999, files)
            assert "ADD failed inside of cilia (KeyError: '0f3c')" in answer.json["msg"]
            assert (await runtime.ask("STATUS")).status == 0
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["exc_info"] and line["attachment"] == "cilia:0f3c:eth0"


async def test_an_error_of_our_own_ends_no_other_connection(
    runtime: Runtime, plugin: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Request:
        raise ZeroDivisionError("of ours")

    async with serving(runtime.socket, plugin):
        with monkeypatch.context() as broken:
            broken.setattr(server, "parse", fail)
            answer = await runtime.ask("ADD")
            assert (answer.code, "ZeroDivisionError: of ours" in answer.json["msg"]) == (999, True)
        assert (await runtime.ask("ADD")).status == 0


async def test_a_request_that_takes_too_long_is_ended(runtime: Runtime, plugin: Recorder) -> None:
    ended = anyio.Event()

    async def hang(_: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    plugin.work[Command.ADD] = hang
    async with serving(runtime.socket, plugin, {Command.ADD: 0.1}):
        answer = await runtime.ask("ADD")
        assert (answer.code, ended.is_set()) == (11, True)
        assert "ADD was not done within 0.1 s" in answer.json["msg"]


async def test_two_hundred_at_once_are_served_some_at_a_time(
    runtime: Runtime, plugin: Recorder
) -> None:
    working, most = 0, 0
    full, end = anyio.Event(), anyio.Event()

    async def work(_: Request) -> None:
        nonlocal working, most
        working += 1
        most = max(most, working)
        if working == server.MAX_REQUESTS:
            full.set()
        await end.wait()
        working -= 1

    plugin.work[Command.ADD] = work
    async with serving(runtime.socket, plugin):
        processes = [runtime.start("ADD", CNI_CONTAINERID=f"c{number}") for number in range(200)]
        await full.wait()
        with anyio.fail_after(5 * PATIENCE):  # nothing holds it up
            assert (await runtime.ask("STATUS")).status == 0
        end.set()
        for process in processes:
            await anyio.to_thread.run_sync(process.communicate)
    assert {process.returncode for process in processes} == {0}
    assert most == server.MAX_REQUESTS
    assert len({request.container_id for request in plugin.requests}) == 201  # with STATUS


async def test_who_waits_for_its_pod_takes_no_place(runtime: Runtime, plugin: Recorder) -> None:
    """Also not after its runtime has gone: a DEL of the same container follows at once."""
    waiting = 0

    async def wait(request: Request) -> None:
        nonlocal waiting
        if request.container_id.startswith("late"):
            waiting += 1
            await anyio.sleep_forever()

    plugin.waits_for = wait
    number = server.MAX_REQUESTS + 6
    async with serving(runtime.socket, plugin):
        late = [runtime.start("ADD", CNI_CONTAINERID=f"late{n}") for n in range(number)]
        await eventually(lambda: waiting == number)
        with anyio.fail_after(5 * PATIENCE):
            assert (await runtime.ask("ADD", CNI_CONTAINERID="known")).status == 0
            assert (await runtime.ask("DEL", CNI_CONTAINERID="known")).status == 0
            for process in late:
                process.kill()
                process.communicate()
            assert (await runtime.ask("DEL", CNI_CONTAINERID="late0")).status == 0
    assert plugin.commands == ["ADD", "DEL", "DEL"]


async def test_requests_of_one_attachment_wait_for_each_other(
    runtime: Runtime, plugin: Recorder
) -> None:
    begun, end = anyio.Event(), anyio.Event()
    ended: list[str] = []

    async def add(request: Request) -> None:
        begun.set()
        await end.wait()
        ended.append(request.command)

    plugin.work[Command.ADD] = add
    async with serving(runtime.socket, plugin) as served:
        adding = runtime.start("ADD")
        await begun.wait()
        deleting = runtime.start("DEL")
        assert (await runtime.ask("DEL", CNI_IFNAME="net1")).status == 0
        attachment = plugin.requests[0].attachment
        await eventually(lambda: served._turns.waiting(attachment) == 1)
        assert plugin.commands == ["ADD", "DEL"]
        end.set()
        for process in (adding, deleting):
            await anyio.to_thread.run_sync(process.communicate)
        assert plugin.commands == ["ADD", "DEL", "DEL"]
        assert len(served._turns) == 0
    assert ended == ["ADD"]


async def test_a_request_that_nobody_waits_for_is_not_carried_out(
    runtime: Runtime, plugin: Recorder
) -> None:
    begun, end = anyio.Event(), anyio.Event()

    async def add(_: Request) -> None:
        begun.set()
        await end.wait()

    plugin.work[Command.ADD] = add
    with capture_logs() as logs:
        async with serving(runtime.socket, plugin) as served:
            adding = runtime.start("ADD")
            await begun.wait()
            attachment = plugin.requests[0].attachment
            with runtime.start("DEL") as gone:
                await eventually(lambda: served._turns.waiting(attachment) == 1)
                gone.kill()
            end.set()
            await anyio.to_thread.run_sync(adding.communicate)
            assert (await runtime.ask("STATUS")).status == 0
    assert plugin.commands == ["ADD", "STATUS"]
    assert any("nobody waits" in line["event"] for line in logs)


async def test_peers_that_say_nothing_hold_up_nobody_and_are_ended(
    runtime: Runtime, plugin: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PEER_S", 1.0)
    with ExitStack() as stack:
        async with serving(runtime.socket, plugin):
            files = descriptors()
            peers = [
                stack.enter_context(connected(runtime.socket)) for _ in range(server.MAX_REQUESTS)
            ]
            for number, peer in enumerate(peers):
                peer.sendall(status_request()[:number])  # some begin
            assert (await runtime.ask("ADD")).status == 0
            for peer in peers:
                answer = await answered(peer)
                assert answer.code == 6
                assert "not sent within 1 s" in answer.json["msg"]
            await eventually(lambda: descriptors() == files + len(peers))


async def test_a_peer_that_does_not_take_its_answer_is_ended(
    runtime: Runtime, plugin: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PEER_S", 0.2)

    async def refuse(_: Request) -> None:
        raise CNIError(100, "x" * 2_000_000)

    plugin.work[Command.STATUS] = refuse
    with capture_logs() as logs:
        async with serving(runtime.socket, plugin):
            with connected(runtime.socket) as peer:
                peer.sendall(status_request())
                await eventually(lambda: any("did not take" in line["event"] for line in logs))
            assert (await runtime.ask("ADD")).status == 0


def pass_descriptors(peer: socket.socket, data: bytes, count: int) -> None:
    """Send bytes with so many descriptors of this process's namespace."""
    with open(NETNS, "rb") as netns:
        passed = array.array("i", [netns.fileno()] * count)
        peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])


@pytest.mark.parametrize("count", [2, 4, 5, 200])
async def test_more_descriptors_than_one_are_refused_and_closed(
    runtime: Runtime, plugin: Recorder, count: int
) -> None:
    async with serving(runtime.socket, plugin):
        files = descriptors()
        with connected(runtime.socket) as peer:
            pass_descriptors(peer, status_request(), count)
            assert "more than one descriptor" in (await answered(peer)).json["msg"]
        with connected(runtime.socket) as peer:  # one by one
            for byte in status_request()[:3]:
                pass_descriptors(peer, bytes([byte]), 1)
            assert "more than one descriptor" in (await answered(peer)).json["msg"]
        with connected(runtime.socket) as peer:  # a request that is never whole
            pass_descriptors(peer, status_request()[:20], 1)
        await eventually(lambda: descriptors() == files)
        assert plugin.requests == []


WRONG = [
    (b"GET / HTTP/1.1\r\n\r\n", "does not begin"),
    (b"CNI\2" + bytes(8), "it is of version 2, and this agent speaks 1"),
    (b"CNI\1\xff\xff\xff\xff\0\0\0\0", "announces 4294967295 and 0 bytes"),
    (b"CNI\1\0\0\0\0\0\x10\0\1", "announces 0 and 1048577 bytes"),
    (message(b"", b"{}"), "CNI_COMMAND is ''"),
    (message(VARIABLES, b"{"), "no JSON"),
    (message(b"\xff\0", b"{}"), "CNI_COMMAND is ''"),
]


@pytest.mark.parametrize(("data", "reason"), WRONG)
async def test_what_is_no_request_is_refused_with_a_sentence(
    runtime: Runtime, plugin: Recorder, data: bytes, reason: str
) -> None:
    async with serving(runtime.socket, plugin):
        with connected(runtime.socket) as peer:
            peer.sendall(data)
            answer = await answered(peer)
        assert answer.status == 1
        assert reason in answer.json["msg"]
        assert (await runtime.ask("ADD")).status == 0


async def test_the_longest_request_is_read_and_a_longer_one_is_not(
    runtime: Runtime, plugin: Recorder
) -> None:
    rest = (1 << 20) - len(runtime.config(padding=""))
    async with serving(runtime.socket, plugin):
        longest = runtime.config(padding="x" * rest)
        answer = await runtime.ask("ADD", longest, CNI_A="a" * 120_000, CNI_B="b" * 120_000)
        assert answer.status == 0, answer
    assert len(plugin.requests[0].raw_config) == wire.MAX_INPUT


def test_any_bytes_are_answered_and_leave_nothing(runtime: Runtime, plugin: Recorder) -> None:
    """Also requests with some bytes changed, and ones that end early."""
    good = message(b"CNI_COMMAND=STATUS\0CNI_ARGS=a=b\0", json.dumps(CONFIG).encode())
    changes = st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=4)
    inputs: list[bytes] = []

    @settings(max_examples=150)
    @given(st.binary(max_size=40), changes, st.integers(0, len(good)))
    def collect(data: bytes, changed: list[tuple[int, int]], end: int) -> None:
        bad = bytearray(good)
        for place, value in changed:
            bad[place] = value
        inputs.extend([data, bytes(bad), good[:end]])

    collect()

    async def run() -> None:
        with capture_logs() as logs:
            async with serving(runtime.socket, plugin):
                files = descriptors()
                for data in inputs:
                    with connected(runtime.socket) as peer:
                        peer.sendall(data)
                        peer.shutdown(socket.SHUT_WR)
                        answer = await answered(peer)
                    assert answer.output == "" or answer.json["msg"]
                await eventually(lambda: descriptors() == files)
                assert (await runtime.ask("ADD")).status == 0
        assert not [line for line in logs if line["log_level"] == "error"]

    anyio.run(run)


@pytest.mark.root
async def test_a_peer_that_is_not_root_is_not_served(runtime: Runtime, plugin: Recorder) -> None:
    """Its file's mode keeps it away; if somebody changes that, the server does."""
    for directory in (runtime.socket.parent, *runtime.socket.parents):
        if directory.stat().st_uid == os.getuid() and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)

    def as_nobody() -> str:
        """Return what a process of another user is told."""
        reader, writer = os.pipe()
        if not (pid := os.fork()):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as peer:
                try:
                    peer.connect(str(runtime.socket))
                    peer.sendall(status_request())
                    said = repr(peer.recv(1 << 16))
                except OSError as error:
                    said = type(error).__name__
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as file:
            said = file.read()
        os.waitpid(pid, 0)
        return said

    with capture_logs() as logs:
        async with serving(runtime.socket, plugin):
            assert await anyio.to_thread.run_sync(as_nobody) == "PermissionError"
            runtime.socket.chmod(0o666)
            said = await anyio.to_thread.run_sync(as_nobody)
            assert said in ("b''", "ConnectionResetError", "BrokenPipeError")
            assert plugin.requests == []
            assert (await runtime.ask("ADD")).status == 0
    assert [line["uid"] for line in logs if "not root" in line["event"]] == [65534]


async def test_a_process_without_descriptors_serves_when_it_has_some(
    runtime: Runtime, plugin: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FULL_S", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with capture_logs() as logs:
        async with serving(runtime.socket, plugin):
            with socket.socket(socket.AF_UNIX) as peer, open(os.devnull) as highest:
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
                try:
                    peer.connect(str(runtime.socket))
                    peer.sendall(status_request())
                    await eventually(
                        lambda: any("can be taken now" in line["event"] for line in logs)
                    )
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert await answered(peer) == (0, "")


@pytest.mark.parametrize("change", ["removed", "renamed", "replaced"])
async def test_a_socket_that_is_gone_is_made_anew(
    runtime: Runtime, plugin: Recorder, change: str
) -> None:
    """Requests that are carried out meanwhile go on."""
    begun, end = anyio.Event(), anyio.Event()

    async def add(_: Request) -> None:
        begun.set()
        await end.wait()

    plugin.work[Command.ADD] = add
    async with serving(runtime.socket, plugin) as served:
        adding = runtime.start("ADD")
        await begun.wait()
        former = runtime.socket.stat().st_ino
        match change:
            case "removed":
                runtime.socket.unlink()
            case "renamed":
                runtime.socket.rename(runtime.socket.with_name("elsewhere"))
            case "replaced":
                (runtime.socket.parent / "new").touch()
                (runtime.socket.parent / "new").rename(runtime.socket)
        await eventually(
            lambda: runtime.socket.is_socket() and runtime.socket.stat().st_ino != former
        )
        await eventually(lambda: socket_takes(runtime.socket))
        assert (await runtime.ask("STATUS")).status == 0
        end.set()
        output, _ = await anyio.to_thread.run_sync(adding.communicate)
        assert (adding.returncode, parsed(json.loads(output))) == (0, RESULT)
        await eventually(lambda: served._connections.value == server.MAX_CONNECTIONS - 1)


def socket_takes(path: Path) -> bool:
    try:
        with connected(path):
            return True
    except OSError:
        return False


@pytest.mark.root
async def test_a_queue_of_somebody_else_is_refused(runtime: Runtime, plugin: Recorder) -> None:
    runtime.queue.mkdir()
    os.chown(runtime.queue, 12345, -1)
    with pytest.raises(ProgramError, match="cni-queue belongs to user 12345"):
        await server.Server(runtime.socket, plugin).serve()
    assert not runtime.socket.exists()


def test_the_program_waits_longer_than_requests_take() -> None:
    """A DEL has less time there, and is queued."""
    source = (SOURCES / "cilia-cni.c").read_text()
    (answer_s, short_answer_s) = re.findall(r"#define (?:SHORT_)?ANSWER_S (\d+)", source)
    limits = server.LIMITS_S
    longest = max(limits[Command.DEL] + limits[Command.ADD], *limits.values())
    assert longest + 2 * server.PEER_S <= int(answer_s)
    assert limits[Command.STATUS] + 2 * server.PEER_S <= int(short_answer_s)

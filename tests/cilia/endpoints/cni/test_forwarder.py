# SPDX-License-Identifier: Apache-2.0
"""`cilia-cni` without an agent, and beside peers that are none: an error with its code, or a DEL
that is queued; never silence, never a crash.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from cilia.endpoints.cni.forwarder import NAME, ForwarderError, build
from cilia.endpoints.cni.results import VERSIONS
from tests.cilia.endpoints.cni import peers
from tests.cilia.endpoints.cni.runtime import Runtime, until_waiting

CODES = {"ADD": 11, "CHECK": 11, "GC": 11, "STATUS": 50}


def queued(runtime: Runtime) -> list[str]:
    return sorted(path.name for path in runtime.queue.glob("*.delete"))


def test_version_needs_no_agent(runtime: Runtime) -> None:
    answer = runtime.call("VERSION", b'{"cniVersion":"0.4.0"}')
    assert answer.status == 0
    assert answer.json == {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)}
    for text in (b"", b"{", b'{"cniVersion":"\\"}'):
        assert runtime.call("VERSION", text).json["cniVersion"] == VERSIONS[-1]


@pytest.mark.parametrize("command", CODES)
def test_the_code_and_the_socket_are_told_when_there_is_no_agent(
    runtime: Runtime, command: str
) -> None:
    answer = runtime.call(command)
    assert answer.code == CODES[command]
    assert f"{runtime.socket} (No such file or directory)" in answer.json["msg"]
    with socket.socket(socket.AF_UNIX) as nobody_listens:
        nobody_listens.bind(str(runtime.socket))
    assert "(Connection refused)" in runtime.call(command).json["msg"]
    assert not runtime.queue.exists()


NO_AGENTS = [
    (peers.closes, "ended the connection|reset by peer"),
    (peers.closes_within_the_answer, "ended the connection"),
    (peers.speaks_http, "no CNI server"),
    (peers.answers_too_much, "no CNI server"),
]


@pytest.mark.parametrize(("peer", "reason"), NO_AGENTS)
@pytest.mark.parametrize("command", CODES)
def test_a_peer_that_does_not_answer_is_no_agent(
    runtime: Runtime, peer: peers.Behaviour, reason: str, command: str
) -> None:
    with peers.listening(runtime.socket, peer):
        answer = runtime.call(command)
    assert answer.code == CODES[command]
    assert any(part in answer.json["msg"] for part in reason.split("|")), answer


@pytest.mark.parametrize("peer", [peer for peer, _ in NO_AGENTS])
def test_delete_is_queued_when_a_peer_does_not_answer(
    runtime: Runtime, peer: peers.Behaviour
) -> None:
    with peers.listening(runtime.socket, peer):
        assert runtime.call("DEL") == (0, "")
    assert queued(runtime) == ["cilia:0f3c:eth0.delete"]


def test_waiting_for_an_answer_ends(impatient: Path, tmp_path: Path) -> None:
    runtime = Runtime(impatient, tmp_path / "cni.sock")
    with peers.listening(runtime.socket, peers.is_silent):
        assert "no answer in time" in runtime.call("STATUS").json["msg"]
        assert runtime.call("DEL") == (0, "")
    assert queued(runtime) == ["cilia:0f3c:eth0.delete"]


def test_waiting_for_a_connection_ends(impatient: Path, tmp_path: Path) -> None:
    runtime = Runtime(impatient, tmp_path / "cni.sock")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(runtime.socket))
        full.listen(0)
        first.connect(str(runtime.socket))  # the queue of connections has room for one
        assert "takes no request in time" in runtime.call("ADD").json["msg"]


def test_waiting_goes_on_after_a_stop(runtime: Runtime) -> None:
    """The kernel ends a wait with a time limit when a stopped process goes on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.socket))
        listener.listen()
        process = runtime.start("ADD")
        peer, _ = listener.accept()
        with peer:
            until_waiting(process.pid)
            os.kill(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            os.kill(process.pid, signal.SIGCONT)
            peers.answers(0, b"{}")(peer)
        assert process.communicate() == (b"{}", b"")


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 1), (255, 255), (256, 1), (999, 1)])
def test_the_answer_is_printed_and_its_status_returned(
    runtime: Runtime, status: int, expected: int
) -> None:
    """Also of an agent that refuses before it has read a request that is long."""
    with peers.listening(runtime.socket, peers.answers(status, b'{"a": "\xc3\xa9"}')):
        config = runtime.config(padding="x" * 900_000)
        assert runtime.call("ADD", config) == (expected, '{"a": "é"}')


def test_an_answer_that_nobody_takes_is_no_success(runtime: Runtime) -> None:
    agent = peers.listening(runtime.socket, peers.answers(0, b"{}" * 50_000))
    with agent, runtime.start("ADD") as process:
        assert process.stdout
        process.stdout.close()
        assert process.wait() == 1


def test_the_socket_is_found_as_people_name_it(program: Path, tmp_path: Path) -> None:
    runtime = Runtime(program, tmp_path / "cni.sock")
    other = tmp_path / "other.sock"
    with peers.listening(runtime.socket, peers.answers(0, b"found")):
        nested = {"args": {"socket-path": str(other)}, "list": ["socket-path", str(other)]}
        tricky = {'x"y\\': ':{["', "socket-path ": str(other), "z": {"a": [{}]}}
        for config in (nested, tricky, {"after": nested, **tricky}):
            assert runtime.call("ADD", runtime.config(**config)).output == "found"
        by_variable = runtime.config(**{"socket-path": str(other)})
        assert runtime.call("ADD", by_variable, CILIA_SOCK=str(runtime.socket)).output == "found"
        spaced = f'{{ "socket-path"\n:\t"{runtime.socket}" , "name":"a"}}'.encode()
        assert runtime.call("ADD", spaced).output == "found"
        twice = runtime.config().replace(b"{", b'{"socket-path": "/other", ', 1)
        assert runtime.call("ADD", twice).output == "found"  # as decoders of JSON have it
    assert "on /run/cilia/cni.sock (" in runtime.call("ADD", b'{"name": 1').json["msg"]


@pytest.mark.parametrize("path", ["relative", "", "/x" * 60, '/quo"ted', "/back\\slash", "/é\n"])
def test_a_path_that_cannot_be_a_socket_is_refused(runtime: Runtime, path: str) -> None:
    answer = runtime.call("ADD", runtime.config(**{"socket-path": path}))
    assert answer.code == 7
    assert "socket-path" in answer.json["msg"]


def test_a_wrong_variable_is_named(runtime: Runtime) -> None:
    for path in ("relative", "/x" * 60):
        answer = runtime.call("ADD", CILIA_SOCK=path)
        assert answer.code == 4
        assert "CILIA_SOCK" in answer.json["msg"]
    assert runtime.call("").code == 4
    answer = runtime.call("ADD", CNI_COMMAND=None)
    assert answer.code == 4
    assert "CNI_COMMAND" in answer.json["msg"]
    answer = runtime.call("ADD", CNI_ARGS="x" * 100_000, CNI_MORE="y" * 100_000, CNI_X="z" * 99_999)
    assert answer.code == 4
    assert "makes the variables CNI_* longer than 262144 bytes" in answer.json["msg"]


def test_a_namespace_that_cannot_be_opened_is_named(runtime: Runtime, tmp_path: Path) -> None:
    """A pipe that nobody writes to is opened without waiting."""
    missing = 'no "such"\n\x1b[31m\\é'
    for command in ("ADD", "CHECK"):
        answer = runtime.call(command, CNI_NETNS=missing)
        assert answer.code == 4
        assert answer.json["msg"].startswith('CNI_NETNS is no "such"\n\x1b[31m\\')
        assert answer.output.isascii() and answer.output.rstrip("\n").isprintable()
    assert runtime.call("STATUS", CNI_NETNS=missing).code == 50
    assert runtime.call("DEL", CNI_NETNS=missing).status == 0
    os.mkfifo(tmp_path / "pipe")
    assert runtime.call("ADD", CNI_NETNS=str(tmp_path / "pipe")).code == 11


def test_a_configuration_that_is_too_long_is_refused(runtime: Runtime) -> None:
    empty = len(runtime.config(padding=""))
    longest = runtime.config(padding="x" * ((1 << 20) - empty))
    assert len(longest) == 1 << 20
    assert runtime.call("ADD", longest).code == 11
    assert runtime.call("ADD", longest + b" ").code == 6


def test_a_build_without_a_compiler_or_a_static_library_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ForwarderError, match="no C compiler 'no-such-compiler': install gcc"):
        build(tmp_path / NAME)
    monkeypatch.setenv("CC", "cc -nostdlib")
    with pytest.raises(ForwarderError, match="no static C library: install libc6-dev"):
        build(tmp_path / NAME)
    monkeypatch.setenv("CC", "cc")
    with pytest.raises(ForwarderError, match=r"cannot be compiled: [\s\S]*CONNECT_S"):
        build(tmp_path / NAME, ["CONNECT_S=)"])
    assert list(tmp_path.iterdir()) == []


def test_errors_are_json_whatever_the_configuration_says(runtime: Runtime) -> None:
    for text in (b"\xff\xfe", b"\0" * 100, b'"', b'{"a\\', b"[" * 1000, json.dumps("x").encode()):
        assert runtime.call("ADD", text, CILIA_SOCK=str(runtime.socket)).code == 11

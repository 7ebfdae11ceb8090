# SPDX-License-Identifier: Apache-2.0
"""`cilia-cni` in a root with nothing but itself, and with input that is made to break it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cilia.endpoints.cni.forwarder import SOURCES
from cilia.endpoints.cni.results import parsed
from cilia.linux.netns import NetNS
from tests.cilia.endpoints.cni import peers
from tests.cilia.endpoints.cni.recorder import RESULT, Recorder, serving
from tests.cilia.endpoints.cni.runtime import CONFIG, Runtime

MS_BIND, MNT_DETACH = 4096, 2
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def netns() -> Iterator[NetNS]:
    with NetNS.new() as netns:
        yield netns


@pytest.fixture
def bare(program: Path, tmp_path: Path, netns: NetNS) -> Iterator[Path]:
    """A root with the program, the socket's directory and a network namespace; no library, no
    device, no /proc.
    """
    root = tmp_path / "root"
    (root / "run" / "cilia").mkdir(parents=True)
    shutil.copy(program, root / "cilia-cni")
    (root / "netns").touch()
    source, target = netns.path.encode(), os.fsencode(root / "netns")
    assert _libc.mount(source, target, None, MS_BIND, None) == 0
    yield root
    _libc.umount2(target, MNT_DETACH)


def inside(root: Path, command: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program there."""
    return subprocess.run(
        ["/cilia-cni"],
        env={
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "0f3c",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/netns",
            "CNI_PATH": "/",
        },
        input=json.dumps(CONFIG).encode(),
        capture_output=True,
        check=False,
        cwd="/",
        preexec_fn=lambda: os.chroot(root),
    )


@pytest.mark.root
async def test_it_needs_nothing_but_itself(bare: Path, plugin: Recorder, netns: NetNS) -> None:
    assert json.loads(inside(bare, "VERSION").stdout)["cniVersion"] == CONFIG["cniVersion"]
    refused = json.loads(inside(bare, "ADD").stdout)
    assert (refused["code"], "/run/cilia/cni.sock" in refused["msg"]) == (11, True)
    assert inside(bare, "DEL").returncode == 0
    queue = bare / "run" / "cilia" / "cni-queue"
    assert (queue / "cilia:0f3c:eth0.delete").exists()
    async with serving(bare / "run" / "cilia" / "cni.sock", plugin):
        added = await anyio.to_thread.run_sync(inside, bare, "ADD")
        assert parsed(json.loads(added.stdout)) == RESULT
        assert (await anyio.to_thread.run_sync(inside, bare, "DEL")).returncode == 0
    assert plugin.commands == ["DEL", "ADD", "DEL"]
    assert plugin.namespaces == [None, netns.inode, netns.inode]
    assert [path.name for path in queue.iterdir()] == ["lockfile"]
    assert sorted(path.name for path in bare.iterdir()) == ["cilia-cni", "netns", "run"]


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with checks of each access to memory, which end it."""
    path = tmp_path_factory.mktemp("checked") / "cilia-cni"
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["cc", "-O1", "-g", *checks, "-o", path, *SOURCES.glob("*.c")], check=True)
    return path


#: What JSON is made of, and what breaks readers of it.
PARTS = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b'\\"', b"\0", b"\xff", b" ", b"1"),
        *(b'"x"', b'"name"', b'"a":[{"b":1}],'),
    ]
)
KEYS = st.sampled_from([b"socket-path", b"name", b"cniVersion"])
VALUES = st.sampled_from([b"", b"/a", b"1.0.0", b"a" * 100, b"/" * 108, b"y" * 300, b"\\u0000"])
MEMBERS = st.builds(lambda key, value: b'"' + key + b'":"' + value + b'",', KEYS, VALUES)
CONFIGS = st.lists(st.one_of(MEMBERS, MEMBERS, MEMBERS, PARTS), max_size=8).map(
    lambda parts: b"{" + b"".join(parts)
)
LONG = b'{"name":"%s","cniVersion":"%s","socket-path":"%s"}' % ((b"y" * 300,) * 3)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=CONFIGS,
    command=st.sampled_from(["ADD", "DEL", "VERSION"]),
    container=st.text("a/:%", max_size=3),
)
@example(config=LONG, command="VERSION", container="")
@example(config=LONG, command="DEL", container="")
@example(config=LONG, command="ADD", container="")
def test_any_configuration_is_answered(
    checked: Path, tmp_path: Path, config: bytes, command: str, container: str
) -> None:
    runtime = Runtime(checked, tmp_path / "no" / "directory" / "cni.sock")
    names_socket = {"CILIA_SOCK": str(runtime.socket)} if command == "DEL" else {}
    answer = runtime.call(command, config, CNI_CONTAINERID=container, **names_socket)
    if command == "VERSION":
        assert answer.code == 7 if answer.status else answer.json["supportedVersions"]
    else:
        assert answer.code in (4, 7, 11)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=40)
    | st.builds(
        lambda status, size, body: b"CNI\1" + status + size + body,
        st.binary(min_size=4, max_size=4),
        st.sampled_from([0, 5, 1 << 20, (1 << 20) + 1, (1 << 32) - 1]).map(
            lambda size: size.to_bytes(4, "big")
        ),
        st.binary(max_size=8),
    )
)
def test_any_answer_is_printed_or_refused(checked: Path, tmp_path: Path, data: bytes) -> None:
    runtime = Runtime(checked, tmp_path / "cni.sock")
    with peers.listening(runtime.socket, peers.says(data)):
        process = runtime.start("ADD")
        output, errors = process.communicate()
    assert errors == b""
    size = int.from_bytes(data[8:12], "big")
    if data[:4] == b"CNI\1" and len(data) >= 12 and size <= min(1 << 20, len(data) - 12):
        assert output == data[12 : 12 + size]
    else:
        assert (process.returncode, json.loads(output)["code"]) == (1, 11)

# SPDX-License-Identifier: Apache-2.0
"""The list is in force whole or not at all, and others get theirs back."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cilia.endpoints.cni import conflist, forwarder
from cilia.endpoints.cni.conflist import FILE, ConflistError
from cilia.endpoints.cni.forwarder import NAME, ForwarderError, build
from cilia.endpoints.cni.network_config import decoded
from tests.cilia.endpoints.cni.runtime import Runtime


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_list_has_what_the_program_and_the_server_read(runtime: Runtime) -> None:
    form = json.loads(conflist.rendered(runtime.socket, mtu=1400))
    for version in form["cniVersions"]:  # a runtime makes the configuration so
        own = {**form["plugins"][0], "name": form["name"], "cniVersion": version}
        config = decoded(json.dumps(own).encode())
        assert (config.name, config.mtu, config.socket_path) == ("cilia", 1400, str(runtime.socket))
    told = runtime.call("ADD", json.dumps(own).encode())
    assert f"on {runtime.socket} (No such file" in told.json["msg"]


def test_with_other_plugins_it_has_one_version_that_all_know(tmp_path: Path) -> None:
    form = json.loads(conflist.rendered(tmp_path / "cni.sock", chained=[conflist.PORTMAP]))
    assert [plugin["type"] for plugin in form["plugins"]] == [NAME, "portmap"]
    assert form["plugins"][1]["capabilities"] == {"portMappings": True}
    assert (form["cniVersion"], "cniVersions" in form) == ("1.0.0", False)


def test_ours_stands_behind_the_plugins_of_another_network(tmp_path: Path) -> None:
    socket = tmp_path / "cni.sock"
    theirs = {"cniVersion": "0.4.0", "name": "theirs", "plugins": [{"type": "bridge"}]}
    (tmp_path / "10-other.conf").write_text('{"name": "other", "type": "x", "cniVersion": "0.3.1"}')
    (tmp_path / "20-broken.conflist").write_text("{")
    with pytest.raises(ConflistError, match="no list of the network theirs"):
        conflist.spliced(tmp_path, "theirs", socket, "aws-cni")
    (tmp_path / "30-theirs.conflist").write_text(json.dumps(theirs))
    for _ in range(2):  # the second time it is one that was set aside
        text = conflist.spliced(tmp_path, "theirs", socket, "aws-cni")
        form = json.loads(text)
        assert [plugin["type"] for plugin in form["plugins"]] == ["bridge", NAME]
        assert (form["name"], form["cniVersion"]) == ("theirs", "0.4.0")
        assert form["plugins"][1]["chaining-mode"] == "aws-cni"
        conflist.write(tmp_path, text)
        conflist.set_aside(tmp_path)
    alone = json.loads(conflist.spliced(tmp_path, "other", socket, "flannel"))
    assert [plugin["type"] for plugin in alone["plugins"]] == ["x", NAME]
    (tmp_path / "30-theirs.conflist").write_text(json.dumps({**theirs, "cniVersion": "0.1.0"}))
    with pytest.raises(ConflistError, match="has cniVersion"):
        conflist.spliced(tmp_path, "theirs", socket, "aws-cni")


def test_it_is_written_whole_and_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert conflist.write(tmp_path, b"one")
    first = path.stat()
    assert stat.S_IMODE(first.st_mode) == 0o600
    assert not conflist.write(tmp_path, b"one")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    with open(path, "rb") as reader:
        assert conflist.write(tmp_path, b"two")
        assert reader.read() == b"one"  # who reads the former file has all of it
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == [FILE]


def test_a_link_of_somebody_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"one")
    (tmp_path / FILE).symlink_to(other)
    assert conflist.write(tmp_path, b"one")
    assert conflist.write(tmp_path, b"two")
    assert other.read_bytes() == b"one"
    assert not (tmp_path / FILE).is_symlink()


def test_a_list_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    conflist.write(tmp_path, b"one")
    (tmp_path / f".{FILE}.new").mkdir()
    with pytest.raises(OSError):
        conflist.write(tmp_path, b"two")
    assert (tmp_path / FILE).read_bytes() == b"one"


def test_it_is_taken_away_once(tmp_path: Path) -> None:
    conflist.write(tmp_path, b"one")
    assert [conflist.remove(tmp_path), conflist.remove(tmp_path)] == [True, False]


THEIRS = ["05-cilium.conflist", "10-bridge.conf", "87-podman.conflist", "99-loopback.json"]


def test_others_are_set_aside_and_get_theirs_back(tmp_path: Path) -> None:
    for name in THEIRS:
        (tmp_path / name).write_text(name)
    (tmp_path / "linked.conf").symlink_to("/nowhere")
    for other in ("README", "whereabouts.d", "10-old.conf.cilium_bak.d", "x.conf.bak"):
        (tmp_path / other).touch()
    (tmp_path / "directory.conf").mkdir()
    conflist.write(tmp_path, b"ours")
    before = names(tmp_path)
    moved = [*THEIRS, "linked.conf"]
    assert sorted(path.name for path in conflist.set_aside(tmp_path)) == sorted(
        f"{name}.cilium_bak" for name in moved
    )
    assert conflist.others(tmp_path) == conflist.set_aside(tmp_path) == []
    assert (tmp_path / FILE).read_bytes() == b"ours"
    assert sorted(path.name for path in conflist.give_back(tmp_path)) == sorted(moved)
    assert names(tmp_path) == before
    assert [(tmp_path / name).read_text() for name in THEIRS] == THEIRS
    assert conflist.give_back(tmp_path) == []


def test_the_newest_of_a_name_is_kept_and_one_in_force_is_not_overwritten(tmp_path: Path) -> None:
    theirs = tmp_path / "10-bridge.conf"
    for text in ("old", "new"):
        theirs.write_text(text)
        conflist.set_aside(tmp_path)
    theirs.write_text("again")
    with capture_logs() as logs:
        assert conflist.give_back(tmp_path) == []
    assert theirs.read_text() == "again"
    assert (tmp_path / "10-bridge.conf.cilium_bak").read_text() == "new"
    assert [line["path"] for line in logs] == [str(theirs)]


OURS = {"cniVersion": "0.4.0", "name": "n", "plugins": [{"type": "bridge"}, {"type": NAME}]}


def test_a_list_of_somebody_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "custom"
    path.write_text(json.dumps(OURS, indent=7))
    assert conflist.custom(path) == path.read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"5", "needs cniVersion, name and plugins"),
        (b"[]", "needs cniVersion, name and plugins"),
        (json.dumps({**OURS, "name": 5}).encode(), "needs cniVersion, name and plugins"),
        (json.dumps({**OURS, "plugins": [5]}).encode(), "needs cniVersion, name and plugins"),
        (json.dumps({**OURS, "plugins": []}).encode(), "no plugin of type cilia-cni"),
        (json.dumps({**OURS, "plugins": [{"type": "x"}]}).encode(), "no plugin of type cilia-cni"),
    ],
)
def test_a_list_without_us_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "custom"
    path.write_bytes(content)
    with pytest.raises(ConflistError, match=reason):
        conflist.custom(path)


@pytest.fixture
def packaged(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program as a wheel has it."""
    path = tmp_path / "package" / NAME
    path.parent.mkdir()
    path.write_bytes(program.read_bytes())
    monkeypatch.setattr(forwarder, "BINARY", path)
    return path


def test_the_program_is_installed_over_one_that_runs(
    tmp_path: Path, packaged: Path, runtime: Runtime
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    assert conflist.install_program(plugins)
    assert not conflist.install_program(plugins)
    installed = Runtime(plugins / NAME, runtime.socket)
    assert stat.S_IMODE(installed.program.stat().st_mode) == 0o755
    environment = {"CNI_COMMAND": "VERSION"}
    with subprocess.Popen(
        [installed.program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        build(packaged, ["CONNECT_S=1", "ANSWER_S=1", "SHORT_ANSWER_S=1"])
        assert conflist.install_program(plugins)
        assert b"supportedVersions" in running.communicate(b"")[0]
    assert installed.program.read_bytes() == packaged.read_bytes()
    installed.program.chmod(0o600)
    assert conflist.install_program(plugins)
    assert installed.call("VERSION").status == 0
    assert names(plugins) == [NAME]


def test_an_installation_without_the_program_says_so(tmp_path: Path, packaged: Path) -> None:
    packaged.unlink()
    with pytest.raises(ForwarderError, match=r"run install/setup\.sh in a checkout"):
        conflist.install_program(tmp_path)
    assert not os.path.lexists(tmp_path / NAME)

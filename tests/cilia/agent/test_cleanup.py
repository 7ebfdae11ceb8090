# SPDX-License-Identifier: Apache-2.0
"""All of an instance goes, and nothing of another. The state directory of an agent in a container
is mounted there: emptied, it stays.
"""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import pins
from bpf.maps.map import Map
from bpf.maps.types import MapType
from bpf.object import Object
from cilia.agent.cleanup import acquire, remove_everything
from cilia.agent.config import AgentConfig
from cilia.agent.state_directory import locked
from cilia.datapath.mounts import remember_pins
from cilia.linux.lock import AlreadyRunning, InstanceLock
from cilia.linux.mounts import mount_bpffs
from cilia.linux.netlink import Netlink
from cilia.program.errors import ProgramError
from reconcilers.datapath.attachment_places import FilterPlaces
from tables.datapath.attachments import AttachHook, Attachment
from tests.bpf.sources import build
from tests.bpf.world import unmount
from tests.kernel import Kernel

SOURCE = """
SEC("tc") int from_netdev(struct __sk_buff *ctx) { return -1; }
"""


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    state = tmp_path / "state"
    (state / "config" / "options-1").mkdir(parents=True)
    (state / "config" / "current").symlink_to("options-1")
    (state / "cilia.sock").touch()
    return AgentConfig(state_dir=state, bpf_root=tmp_path / "bpf")


def refuse(number: int, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """The kernel does not let this directory go."""
    rmdir = Path.rmdir

    def refused(path: Path) -> None:
        if path == directory:
            raise OSError(number, "refused")
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", refused)


def test_an_agent_that_has_made_nothing_yet_keeps_a_cleanup_away(tmp_path: Path) -> None:
    config = AgentConfig(state_dir=tmp_path / "state", bpf_root=tmp_path / "bpf")
    with locked(config), pytest.raises(AlreadyRunning):
        acquire(InstanceLock(), config, 0.0)


def test_a_cleanup_of_nothing_keeps_an_agent_away(tmp_path: Path) -> None:
    """Or it would remove what the agent makes meanwhile."""
    config = AgentConfig(state_dir=tmp_path / "state", bpf_root=tmp_path / "bpf")
    lock = InstanceLock()
    acquire(lock, config, 0.0)
    with pytest.raises(ProgramError, match="in use"), locked(config):
        pass
    assert remove_everything(config) == []
    lock.release()
    with locked(config):
        assert config.run_dir.is_dir()


def test_all_of_it_goes(config: AgentConfig) -> None:
    assert remove_everything(config) == [str(config.run_dir)]
    assert not config.run_dir.exists()


def test_what_an_agent_did_not_make_stays_and_is_told(config: AgentConfig) -> None:
    note = config.run_dir / "note"
    note.touch()
    (config.run_dir / ".pins.json.new").touch()
    (config.run_dir / "mounts.json.broken").touch()
    remember_pins(config.run_dir, config.pin_dir)
    lock = InstanceLock()
    acquire(lock, config, 0.0)
    lock.release()
    assert remove_everything(config) == [str(config.run_dir), f"left: {note} is not an agent's"]
    assert list(config.run_dir.iterdir()) == [note]


@pytest.mark.parametrize("name", ["file", "manifests/../file", ".hidden.new"])
def test_a_directory_of_others_is_refused_by_agent_and_cleanup(tmp_path: Path, name: str) -> None:
    config = AgentConfig(state_dir=tmp_path / "state", bpf_root=tmp_path / "bpf")
    config.run_dir.mkdir()
    (config.run_dir / "manifests").mkdir()
    (config.run_dir / name).touch()
    with pytest.raises(ProgramError, match="no record of an agent: name a directory of its own"):
        acquire(InstanceLock(), config, 0.0)
    with pytest.raises(ProgramError, match="no record of an agent"), locked(config):
        pass
    assert (config.run_dir / name).exists()


def test_manifests_of_a_person_are_no_copies(tmp_path: Path) -> None:
    """A state directory that is named by a slip, beside the manifests that it looks like."""
    config = AgentConfig(state_dir=tmp_path / "etc", bpf_root=tmp_path / "bpf")
    manifests = config.run_dir / "manifests"
    manifests.mkdir(parents=True)
    (manifests / "a.yaml").touch()
    with pytest.raises(ProgramError, match=r"no agent made \(manifests\) and no record"):
        acquire(InstanceLock(), config, 0.0)
    remember_pins(config.run_dir, config.pin_dir)
    assert remove_everything(config) == [
        str(config.run_dir),
        f"left: {manifests} is not an agent's",
    ]
    assert (manifests / "a.yaml").exists()


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EROFS])
def test_a_mounted_directory_is_emptied(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(number, monkeypatch, config.run_dir)
    assert remove_everything(config) == [str(config.run_dir)]
    assert list(config.run_dir.iterdir()) == []


def test_another_refusal_is_told(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(errno.EPERM, monkeypatch, config.run_dir)
    with pytest.raises(PermissionError):
        remove_everything(config)


@pytest.fixture
def bpf_root(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpf"
    mount_bpffs(path)
    yield path
    subprocess.run(["umount", path], check=True)


def serve(kernel: Kernel, bpf_root: Path, instance: str, device: str) -> int:
    """Attach a program as an instance does without TCX; returns its id."""
    pin = bpf_root / instance / "programs" / "from_netdev"
    pin.parent.mkdir(parents=True)
    row = Attachment(target=device, hook=AttachHook.INGRESS, owner="packets", program=str(pin))

    def attach() -> int:
        with Object.open("test", build(SOURCE)) as obj, Netlink() as netlink:
            obj.load()
            with obj.program("from_netdev") as program:
                pins.pin(program.number, pin)
                index = socket.if_nametoindex(device)
                places = FilterPlaces(netlink, pin.parent.parent)
                return places.attach(row, index, index, program).program_id

    return kernel.netns.run(attach)


@pytest.mark.root
def test_tc_filters_go_and_those_of_another_instance_stay(
    kernel: Kernel, bpf_root: Path, config: AgentConfig
) -> None:
    kernel.veth("v0", "v1")
    serve(kernel, bpf_root, config.instance, "v0")
    other = serve(kernel, bpf_root, "other", "v1")

    def remove() -> tuple[list[str], list[int]]:
        removed = remove_everything(config)
        with Netlink() as netlink:
            left = [FilterPlaces(netlink, bpf_root / name) for name in (config.instance, "other")]
            return removed, [number for it in left for number in it.program_ids().values()]

    removed, left = kernel.netns.run(remove)
    assert removed[0] == "1 tc filters on devices"
    assert left == [other]


@pytest.mark.root
def test_pins_of_others_stay(config: AgentConfig, bpf_root: Path) -> None:
    """The name of an instance may be that of another program's directory."""
    pin = config.pin_dir / "globals" / "other_map"
    pin.parent.mkdir(parents=True)
    with Map.create(MapType.HASH, "other", 4, 4, 1) as made:
        made.pin(pin)
    assert f"left: {pin.parent} is not of an instance" in remove_everything(config)
    assert pin.exists()
    pins.remove_tree(config.pin_dir)


@pytest.mark.root
def test_pins_of_another_root_are_found_by_the_agents_note(
    config: AgentConfig, tmp_path: Path
) -> None:
    """The command was not told where the agent had its pins."""
    other = tmp_path / "other"
    mount_bpffs(other)
    try:
        pin_dir = other / config.instance
        (pin_dir / "maps").mkdir(parents=True)
        with Map.create(MapType.HASH, "test", 4, 4, 1) as made:
            made.pin(pin_dir / "maps" / "test")
        remember_pins(config.run_dir, pin_dir)
        removed = remove_everything(config)
        assert not pin_dir.exists()
        assert f"programs, maps and links pinned below {pin_dir}" in removed
        assert not config.run_dir.exists()
    finally:
        unmount(other)

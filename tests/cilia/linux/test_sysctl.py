# SPDX-License-Identifier: Apache-2.0
import errno
from pathlib import Path

import pytest

from cilia.linux.sysctl import Sysctl, sysctl_name, sysctl_path
from tests.kernel import Kernel


def test_a_slash_stands_for_a_dot_inside_a_part() -> None:
    root = Path("/proc/sys")
    assert sysctl_path("net.ipv4.ip_forward") == root / "net/ipv4/ip_forward"
    assert sysctl_path("net.ipv4.conf.eth0/100.rp_filter") == root / (
        "net/ipv4/conf/eth0.100/rp_filter"
    )
    name = sysctl_name("net", "ipv4", "conf", "eth0.100", "rp_filter")
    assert sysctl_path(name) == root / "net/ipv4/conf/eth0.100/rp_filter"


@pytest.mark.parametrize("name", ["", "net..x", "net.//.x", ".net", "/.net"])
def test_a_name_that_leaves_the_tree_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a kernel parameter"):
        sysctl_path(name)


def test_read_and_write(tmp_path: Path) -> None:
    (tmp_path / "sys/net").mkdir(parents=True)
    (tmp_path / "sys/net/x").write_text("0\n")
    sysctl = Sysctl(proc=tmp_path)
    assert sysctl.read("net.x") == "0"
    sysctl.write("net.x", "1")
    assert sysctl.read("net.x") == "1"


def test_an_unknown_parameter_is_not_made(tmp_path: Path) -> None:
    sysctl = Sysctl(proc=tmp_path)
    with pytest.raises(FileNotFoundError):
        sysctl.write("x", "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_a_value_belongs_to_its_namespace(kernel: Kernel) -> None:
    inside, outside = Sysctl(kernel.netns), Sysctl()
    before = outside.read("net.ipv4.ip_forward")
    inside.write("net.ipv4.ip_forward", "1")
    assert inside.read("net.ipv4.ip_forward") == "1"
    inside.write("net.ipv4.ip_forward", "0")
    assert inside.read("net.ipv4.ip_forward") == "0"
    assert outside.read("net.ipv4.ip_forward") == before


@pytest.mark.root
def test_a_value_that_the_kernel_refuses_is_an_error(kernel: Kernel) -> None:
    with pytest.raises(OSError) as caught:
        Sysctl(kernel.netns).write("net.ipv4.ip_forward", "perhaps")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.root
def test_a_device_with_a_dot_in_its_name(kernel: Kernel) -> None:
    kernel.veth("v0.7", "v1")
    sysctl = Sysctl(kernel.netns)
    name = sysctl_name("net", "ipv4", "conf", "v0.7", "rp_filter")
    sysctl.write(name, "2")
    assert sysctl.read("net.ipv4.conf.v0/7.rp_filter") == "2"

# SPDX-License-Identifier: Apache-2.0
"""What the three modes of kube-proxy leave in a namespace, written by their own tools."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cilia.linux.netlink import Netlink
from cilia.linux.proxy_rules import kube_proxy_rules
from tests.kernel import Kernel

pytestmark = pytest.mark.root

Found = dict[str, tuple[str, set[str]]]


def found(kernel: Kernel) -> Found:
    """Mode and addresses by place."""

    def look() -> Found:
        with Netlink() as netlink:
            return {
                rules.place: (rules.mode, {str(ip_address(a)) for a in rules.addresses})
                for rules in kube_proxy_rules(netlink)
            }

    return kernel.netns.run(look)


def nft(kernel: Kernel, text: str) -> None:
    kernel._run("nft", "-f", "-", text=text)


def test_nothing_is_found_where_nothing_is(kernel: Kernel) -> None:
    assert found(kernel) == {}
    nft(kernel, "add table ip other; add map ip other service-ips { type ipv4_addr : verdict; }")
    assert found(kernel) == {}


def test_elements_of_nftables(kernel: Kernel) -> None:
    nft(
        kernel,
        """
        table ip kube-proxy {
          chain service { accept; }
          map service-ips {
            type ipv4_addr . inet_proto . inet_service : verdict
            elements = { 10.96.0.1 . tcp . 443 : goto service, 10.96.0.10 . udp . 53 : goto service,
                         10.96.0.10 . tcp . 53 : goto service }
          }
        }
        table ip6 kube-proxy {
          chain service { accept; }
          map service-ips {
            type ipv6_addr . inet_proto . inet_service : verdict
            elements = { fd00::1 . tcp . 443 : goto service }
          }
        }
        """,
    )
    assert found(kernel) == {
        "table ip kube-proxy": ("nftables", {"10.96.0.1", "10.96.0.10"}),
        "table ip6 kube-proxy": ("nftables", {"fd00::1"}),
    }


def test_more_elements_than_one_message_holds(kernel: Kernel) -> None:
    addresses = {f"10.{n >> 8}.{n & 255}.1" for n in range(3000)}
    elements = ", ".join(f"{address} . tcp . 80 : accept" for address in addresses)
    key = "ipv4_addr . inet_proto . inet_service"
    nft(
        kernel,
        "add table ip kube-proxy; "
        f"add map ip kube-proxy service-ips {{ type {key} : verdict; }}; "
        f"add element ip kube-proxy service-ips {{ {elements} }}",
    )
    assert found(kernel) == {"table ip kube-proxy": ("nftables", addresses)}


@pytest.mark.parametrize(
    ("command", "family", "addresses"),
    [
        ("iptables-nft", "ip", {"10.96.0.1", "10.96.0.10"}),
        ("ip6tables-nft", "ip6", {"fd00::1", "fd00::a"}),
    ],
)
def test_rules_of_iptables(kernel: Kernel, command: str, family: str, addresses: set[str]) -> None:
    def iptables(rule: str) -> None:
        kernel._run(command, "-t", "nat", *rule.split())

    iptables("-N KUBE-SERVICES")
    iptables("-A PREROUTING -j KUBE-SERVICES")
    for address in addresses:
        iptables(
            f"-A KUBE-SERVICES -d {address} -p tcp -m comment --comment some:port -m tcp "
            "--dport 443 -j ACCEPT"
        )
    iptables("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j RETURN")  # where node ports go on
    assert found(kernel) == {f"chain {family} nat KUBE-SERVICES": ("iptables", addresses)}


def test_addresses_of_the_device_of_ipvs(kernel: Kernel) -> None:
    kernel.ip("link add kube-ipvs0 type veth peer name other")  # a dummy where there is IPVS
    kernel.ip("link set kube-ipvs0 up")  # it gets an address of its own by that
    kernel.ip("addr add 10.96.0.1/32 dev kube-ipvs0")
    kernel.ip("addr add fd00::1/128 dev kube-ipvs0")
    assert found(kernel) == {"device kube-ipvs0": ("ipvs", {"10.96.0.1", "fd00::1"})}

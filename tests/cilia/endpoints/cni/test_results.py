# SPDX-License-Identifier: Apache-2.0
"""A result has the form of the version that was asked for, and comes back as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.endpoints.cni.results import DNS, IP, VERSIONS, Interface, Result, Route, encoded, parsed

FULL = Result(
    interfaces=(
        Interface(name="lxc1", mac="02:00:00:00:00:01", mtu=1500),
        Interface(name="eth0", mac="02:00:00:00:00:02", mtu=1450, sandbox="/run/netns/x"),
        Interface(name="vf0", sandbox="/run/netns/x", socket_path="/s", pci_id="0000:00:1f.6"),
    ),
    ips=(
        IP(address="fd00::5/128", gateway="fd00::1", interface=1),
        IP(address="10.0.0.5/32", gateway="10.0.0.1", interface=1),
    ),
    routes=(
        Route(dst="0.0.0.0/0", gw="10.0.0.1", mtu=1400, advmss=1360, priority=1, table=0, scope=0),
        Route(dst="::/0", gw="fd00::1"),
    ),
    dns=DNS(nameservers=("10.96.0.10",), domain="d", search=("s",), options=("ndots:5",)),
)


def form(version: str) -> Any:
    return json.loads(encoded(FULL, version))


def test_the_newest_version_has_everything() -> None:
    assert form("1.1.0") == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "lxc1", "mac": "02:00:00:00:00:01", "mtu": 1500},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/x"},
            {"name": "vf0", "sandbox": "/run/netns/x", "socketPath": "/s", "pciID": "0000:00:1f.6"},
        ],
        "ips": [
            {"address": "fd00::5/128", "gateway": "fd00::1", "interface": 1},
            {"address": "10.0.0.5/32", "gateway": "10.0.0.1", "interface": 1},
        ],
        "routes": [
            {
                "dst": "0.0.0.0/0",
                "gw": "10.0.0.1",
                "mtu": 1400,
                "advmss": 1360,
                "priority": 1,
                "table": 0,
                "scope": 0,
            },
            {"dst": "::/0", "gw": "fd00::1"},
        ],
        "dns": {
            "nameservers": ["10.96.0.10"],
            "domain": "d",
            "search": ["s"],
            "options": ["ndots:5"],
        },
    }


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_older_versions_have_no_more_than_they_know(version: str) -> None:
    older = form(version)
    assert older["cniVersion"] == version
    assert [sorted(item) for item in older["interfaces"]] == [
        ["mac", "name"],
        ["mac", "name", "sandbox"],
        ["name", "sandbox"],
    ]
    assert older["routes"] == [
        {"dst": "0.0.0.0/0", "gw": "10.0.0.1"},
        {"dst": "::/0", "gw": "fd00::1"},
    ]
    families = [ip.get("version") for ip in older["ips"]]
    assert families == ([None, None] if version == "1.0.0" else ["6", "4"])


def test_the_newest_form_comes_back_as_it_was() -> None:
    assert parsed(form("1.1.0")) == FULL


def test_nulls_and_unknown_members_are_left_out() -> None:
    assert parsed(
        {"interfaces": None, "ips": [{"address": "::1/128", "gateway": None}], "x": 1}
    ) == (Result(ips=(IP(address="::1/128"),)))


WRONG = [
    ("ips[0].address", {"ips": [{"address": "10.0.0.5"}]}),
    ("ips[0].address", {"ips": [{"address": "10.0.0/24"}]}),
    ("$.ips[0]", {"ips": [{}]}),
    ("ips[1].gateway", {"ips": [{"address": "::1/128"}, {"address": "::1/128", "gateway": "x"}]}),
    ("ips[0].interface", {"ips": [{"address": "::1/128", "interface": 0}]}),
    ("ips[0].interface", {"ips": [{"address": "::1/128", "interface": -1}]}),
    ("routes[0].dst", {"routes": [{"dst": "default"}]}),
    ("routes[0].gw", {"routes": [{"dst": "::/0", "gw": "::/0"}]}),
    ("$.interfaces[0].name", {"interfaces": [{"name": 5}]}),
]


@pytest.mark.parametrize(("field", "wrong"), WRONG)
def test_the_field_that_is_wrong_is_named(field: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as refused:
        parsed(wrong)
    assert field in str(refused.value)


def test_a_result_that_is_wrong_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"ips\[0\].address: '10.0.0.5' has no prefix length"):
        Result(ips=(IP(address="10.0.0.5"),))


ADDRESSES = st.ip_addresses()
PREFIXES = ADDRESSES.flatmap(
    lambda a: st.integers(0, a.max_prefixlen).map(lambda length: f"{a}/{length}")
)
TEXTS = st.text(max_size=5)


@settings(max_examples=40)
@given(
    st.builds(
        Result,
        interfaces=st.lists(
            st.builds(Interface, name=TEXTS, mac=TEXTS, mtu=st.integers(0, 9000)), min_size=1
        ).map(tuple),
        ips=st.lists(
            st.builds(
                IP,
                address=PREFIXES,
                gateway=st.just("") | ADDRESSES.map(str),
                interface=st.none() | st.just(0),
            )
        ).map(tuple),
        routes=st.lists(
            st.builds(
                Route, dst=PREFIXES, gw=ADDRESSES.map(str), table=st.none() | st.integers(0, 9)
            )
        ).map(tuple),
        dns=st.builds(DNS, domain=TEXTS, search=st.lists(TEXTS).map(tuple)),
    )
)
def test_results_come_back_in_all_versions(result: Result) -> None:
    assert parsed(json.loads(encoded(result, "1.1.0"))) == result
    for version in VERSIONS:
        again = parsed(json.loads(encoded(result, version)))
        assert encoded(again, version) == encoded(result, version)

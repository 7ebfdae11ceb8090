# SPDX-License-Identifier: Apache-2.0
"""Which families are masqueraded, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cilia.masquerade.options import MasqueradeOptions, packet_constants

V4, V6 = False, True


def options(**values: object) -> MasqueradeOptions:
    return MasqueradeOptions.model_validate({"pod_network": True, **values})


def test_both_families_are_masqueraded_with_the_pod_network_alone() -> None:
    assert options().masqueraded == {V4, V6}
    assert MasqueradeOptions.model_validate({}).masqueraded == frozenset()


@pytest.mark.parametrize("v6", [V4, V6])
def test_a_family_is_turned_off_alone(v6: bool) -> None:
    family, other = (6, 4) if v6 else (4, 6)
    off = options(**{f"enable_ipv{family}_masquerade": False})
    assert off.masqueraded == {not v6}
    assert packet_constants(off) == {f"masquerade{family}": b"\0", f"masquerade{other}": b"\1"}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"enable_bpf_masquerade": False}, "by netfilter is not built"),
        ({"ipv4_native_routing_cidr": "fd00::/8"}, "no prefix of IPv4"),
        ({"ipv6_native_routing_cidr": "10.0.0.0/8"}, "no prefix of IPv6"),
        ({"ipv4_native_routing_cidr": "10.0.0.1/8"}, "has host bits set"),
        ({"ipv4_native_routing_cidr": "ten"}, "does not appear to be"),
        ({"pod_network": False, "enable_ipv4_masquerade": True}, "leave it out without"),
        ({"pod_network": False, "enable_ip_masq_agent": True}, "leave it out without"),
        ({"pod_network": False, "ipv6_native_routing_cidr": "fd00::/8"}, "leave it out without"),
        (
            {
                "enable_ipv4_masquerade": False,
                "enable_ipv6_masquerade": False,
                "enable_ip_masq_agent": True,
            },
            "names what is not masqueraded",
        ),
    ],
)
def test_what_is_not_built_or_means_nothing_is_refused(values: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        options(**values)


def test_what_is_off_may_be_said_anywhere() -> None:
    off = {f"enable_{name}_masquerade": False for name in ("ipv4", "ipv6", "bpf")}
    assert MasqueradeOptions.model_validate(off).masqueraded == frozenset()
    assert options(**off).masqueraded == frozenset()

# SPDX-License-Identifier: Apache-2.0
"""The field's annotations of pods: what one asks for here, and those that are not in force.

Annotations of others are nobody's business. One of the field's that means nothing here is named in
the endpoint's row, so that whoever wrote it does not rely on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["MAC_ADDRESS", "NOT_IN_FORCE", "InvalidAnnotation", "mac_address", "not_in_force"]

#: The Ethernet address of the pod's device.
MAC_ADDRESS: Final = "cni.cilium.io/mac-address"

#: Annotations of pods whose behaviour is not built.
NOT_IN_FORCE: Final = frozenset(
    {
        "bandwidth.cilium.io/priority",
        "config.cilium.io/disable-source-ip-verification",
        "ipam.cilium.io/ip-pool",
        "ipam.cilium.io/ipv4-pool",
        "ipam.cilium.io/ipv6-pool",
        "ipam.cilium.io/require-pool-match",
        "kubernetes.io/egress-bandwidth",
        "kubernetes.io/ingress-bandwidth",
        "network.cilium.io/no-track-host-ports",
        "policy.cilium.io/no-track-port",
        "policy.cilium.io/proxy-visibility",
    }
)

_MAC: Final = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.IGNORECASE)


class InvalidAnnotation(ValueError):
    """The value of an annotation means nothing."""


def mac_address(annotations: Mapping[str, str]) -> bytes | None:
    """Return the Ethernet address that a pod asks for, None if it asks for none.

    Raises: InvalidAnnotation.
    """
    text = annotations.get(MAC_ADDRESS)
    if text is None:
        return None
    raw = bytes.fromhex(re.sub("[:-]", "", text)) if _MAC.fullmatch(text) else b""
    if not any(raw) or raw[0] & 1:
        raise InvalidAnnotation(f"{MAC_ADDRESS}: {text!r} is no Ethernet address of a device")
    return raw


def not_in_force(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the field's annotations that change nothing here, sorted."""
    return tuple(sorted(NOT_IN_FORCE.intersection(annotations)))

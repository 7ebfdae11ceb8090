# SPDX-License-Identifier: Apache-2.0
"""The world behind a node: a router that knows no pods but those it may ask directly.

::

    pods ── node .1 ──── .9 router .1 ──── .7 far          192.0.2.0/24, fd00:2::/64
                                  MTU 1300                 198.51.100.0/24, 2001:db8:51::/64
"""

from __future__ import annotations

from tests.e2e.nodes import FAMILIES, forward, pair
from tests.kernel import Kernel

NODE = {4: "192.0.2.1", 6: "fd00:2::1"}
ROUTER = {4: "192.0.2.9", 6: "fd00:2::9"}
ROUTER_FAR = {4: "198.51.100.1", 6: "2001:db8:51::1"}
FAR = {4: "198.51.100.7", 6: "2001:db8:51::7"}
#: Of the same machine, in prefixes that a file names.
SPARED = {4: "203.0.113.7", 6: "2001:db8:113::7"}
SPARED_PREFIX = {4: "203.0.113.0/24", 6: "2001:db8:113::/64"}
PODS = {4: "10.207.0.0/24", 6: "fd00:207::/120"}
BITS = {4: 24, 6: 64}
NARROW_MTU = 1300


def wire(node: Kernel, router: Kernel, far: Kernel) -> None:
    pair(node, "eth0", router, "eth0")
    pair(router, "eth1", far, "eth0")
    forward(router)
    for family in FAMILIES:
        nodad = " nodad" if family == 6 else ""
        for kernel, device, address in (
            (node, "eth0", NODE),
            (router, "eth0", ROUTER),
            (router, "eth1", ROUTER_FAR),
            (far, "eth0", FAR),
            (far, "eth0", SPARED),
        ):
            # The far machine speaks first with the address that no file names.
            last = " preferred_lft 0" if address is SPARED and family == 6 else ""
            kernel.ip(f"addr add {address[family]}/{BITS[family]} dev {device}{nodad}{last}")
        node.ip(f"-{family} route add default via {ROUTER[family]}")
        far.ip(f"-{family} route add default via {ROUTER_FAR[family]}")
        router.ip(f"-{family} route add {SPARED_PREFIX[family]} dev eth1")
        router.ip(f"-{family} route add {PODS[family]} via {NODE[family]}")
    router.ip(f"link set eth1 mtu {NARROW_MTU}")
    far.ip(f"link set eth0 mtu {NARROW_MTU}")

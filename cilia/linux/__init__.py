# SPDX-License-Identifier: Apache-2.0
"""The kernel edge outside BPF: netlink, network namespaces, sysctl, cgroup and mounts.

Belongs here: what talks to the kernel and knows no table. What moves rows does not: see
`cilia/node/devices.py` (kernel to tables) and `reconcilers/` (tables to kernel). No program
such as ip, tc or sysctl is called. Start at `netlink.py`; `rtnl.py` is what it says as values,
`netns.py` how everything works inside another namespace.
"""

from cilia.linux.errors import KernelError, MountError, NetlinkError, NoDevice, NotOurs, Overrun
from cilia.linux.netlink import Group, Netlink, Request, Subscription
from cilia.linux.netns import NetNS
from cilia.linux.sockdiag import SocketDiag
from cilia.linux.sysctl import Sysctl

__all__ = [
    "Group",
    "KernelError",
    "MountError",
    "NetNS",
    "Netlink",
    "NetlinkError",
    "NoDevice",
    "NotOurs",
    "Overrun",
    "Request",
    "SocketDiag",
    "Subscription",
    "Sysctl",
]

# SPDX-License-Identifier: Apache-2.0
"""Addresses and names of a test cluster. None leaves the namespace of the fabric."""

from __future__ import annotations

from dataclasses import dataclass

BRIDGE_V4, BRIDGE_V6 = "172.30.77.1", "fd00:77::1"
API_PORT = 6443
POD_CIDRS = ("10.244.0.0/16", "fd00:10:244::/56")
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
DNS_ADDRESS = "10.96.0.10"
EXTERNAL_CIDRS = ("192.0.2.0/24", "2001:db8:2::/64")  # of LoadBalancers and externalIPs


@dataclass(frozen=True)
class Member:
    """A machine on the bridge: a node, or a client outside the cluster."""

    name: str
    v4: str
    v6: str

    @property
    def mac(self) -> str:
        """Of its network card, which it keeps over a reboot: others remember it."""
        return f"02:00:00:00:77:{int(self.v4.rpartition('.')[2]):02x}"


NODES = (Member("n1", "172.30.77.11", "fd00:77::11"), Member("n2", "172.30.77.12", "fd00:77::12"))
CLIENT = Member("client", "172.30.77.100", "fd00:77::100")

# SPDX-License-Identifier: Apache-2.0
"""Offloads of a device, by the ioctl that every driver of Linux knows."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x17


def checksum_offload_off(device: str) -> None:
    """The stack makes checksums itself before the device (in the thread's namespace) gets them."""
    command = array.array("B", struct.pack("=II", ETHTOOL_STXCSUM, 0))
    address, _ = command.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", device.encode(), address))

# SPDX-License-Identifier: Apache-2.0
"""Which devices face other nodes: by pattern where the user gave some, else by what they look like.

Pure decisions over one device and its routes; each refusal says why, and the reason is kept in the
row so that nobody has to guess. The criteria are those of cilium's device detection, so that the
same machine gives the same devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tables.addressing import Prefix
from tables.node.devices import IFF_LOOPBACK, IFF_SLAVE, Device
from tables.node.routes import DEFAULT_V4, DEFAULT_V6, TABLE_MAIN, Route

__all__ = ["NO_GLOBAL_ROUTE", "DeviceFilter", "select"]

# Devices of ours, of other plugins and of container engines.
EXCLUDED_PREFIXES = ("cilia_", "cilium_", "lo", "lxc", "cni", "docker")
NO_GLOBAL_ROUTE = "no global unicast routes"
# Bridge-like devices pass on what their ports see; only a user can know that one is meant.
_BRIDGES = ("bridge", "openvswitch")


class DeviceFilter(msgspec.Struct, frozen=True):
    """Patterns of device names: ``eth0``; ``eth+`` for all that begin so; ``!eth9`` excludes."""

    patterns: tuple[str, ...] = ()
    # Go on looking at what a device looks like after a pattern matched.
    detect: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.patterns

    def matches(self, names: Sequence[str]) -> bool:
        """Whether one of a device's names is wanted; an exclusion wins, and alone means all else.

        >>> DeviceFilter(("eth+", "!eth9")).matches(["eth1"])
        True
        >>> DeviceFilter(("eth+", "!eth9")).matches(["eth9"])
        False
        """
        excluded = [pattern[1:] for pattern in self.patterns if pattern.startswith("!")]
        wanted = [pattern for pattern in self.patterns if not pattern.startswith("!")]
        if any(_match(pattern, name) for pattern in excluded for name in names):
            return False
        return not wanted or any(_match(pattern, name) for pattern in wanted for name in names)


def _match(pattern: str, name: str) -> bool:
    if pattern.endswith("+"):
        return name.startswith(pattern[:-1])
    return name == pattern


def select(dev: Device, routes: Iterable[Route], patterns: DeviceFilter) -> tuple[bool, str]:
    """(selected, why not). `routes` are those of the device; they are looked at only if need be."""
    if not dev.addresses:
        return False, "device has no addresses"
    if not dev.is_up:
        return False, "device is down"
    if not patterns.is_empty:
        if not patterns.matches((dev.name, *dev.alternative_names)):
            return False, "not matching the configured devices " + " ".join(patterns.patterns)
        if not patterns.detect:
            return True, ""
    reason = _looks_unfit(dev)
    if not reason:
        reason = _routes_unfit(dev, routes, patterns)
    return not reason, reason


def _looks_unfit(dev: Device) -> str:
    if dev.flags & (IFF_LOOPBACK | IFF_SLAVE):
        return "loopback or enslaved device"
    if dev.master_index:
        return f"port of the device with index {dev.master_index}"
    for prefix in EXCLUDED_PREFIXES:
        if dev.name.startswith(prefix):
            return f"excluded prefix {prefix!r}"
    if dev.type in _BRIDGES:
        return "bridge-like device, name it in --devices to use it"
    return ""


def _routes_unfit(dev: Device, routes: Iterable[Route], patterns: DeviceFilter) -> str:
    """A veth is mostly a leftover of another plugin, unless the way out leads through it."""
    default = False
    reachable = False
    needs_default = dev.type == "veth" and patterns.is_empty
    for route in routes:
        default |= route.table == TABLE_MAIN and route.destination in (DEFAULT_V4, DEFAULT_V6)
        reachable |= _is_global_unicast(route.destination)
        if reachable and (default or not needs_default):
            return ""
    if needs_default and not default:
        return "veth without default route"
    return NO_GLOBAL_ROUTE


def _is_global_unicast(prefix: Prefix) -> bool:
    ip = prefix.ip
    if ip.is_unspecified or ip.is_loopback:
        return False
    packed = ip.packed
    if len(packed) == 4:
        return packed[0] < 224 and packed[:2] != b"\xa9\xfe"
    return packed[0] != 0xFF and not (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)

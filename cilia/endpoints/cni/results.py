# SPDX-License-Identifier: Apache-2.0
"""Results of ADD: one form inside, and the JSON of each version of the specification.

Versions 0.3.1 and 0.4.0 have the family of each address beside it; 1.1.0 has more of interfaces and
routes than those before.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any, Final

import msgspec

__all__ = ["DNS", "IP", "VERSIONS", "Interface", "Result", "Route", "encoded", "parsed"]

#: Versions of the specification that requests may have, the newest last.
VERSIONS: Final = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
#: Versions whose addresses have a family.
_WITH_FAMILY: Final = frozenset({"0.3.1", "0.4.0"})
#: Keys that only the newest version has.
_NEWEST: Final = {
    "interfaces": ("mtu", "socketPath", "pciID"),
    "routes": ("mtu", "advmss", "priority", "table", "scope"),
}


class Interface(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An interface; one in the container has a sandbox, the path of its network namespace."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = msgspec.field(default="", name="socketPath")
    pci_id: str = msgspec.field(default="", name="pciID")


class IP(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An address with its prefix length; `interface` counts from 0 in the result's list."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A route in the container."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class DNS(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Settings for the resolver of the container."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a container has after an ADD."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()

    def __post_init__(self) -> None:
        """Raises: ValueError, with the field."""
        for i, ip in enumerate(self.ips):
            _check(f"ips[{i}].address", ip_interface, ip.address, "/" in ip.address)
            if ip.gateway:
                _check(f"ips[{i}].gateway", ip_address, ip.gateway)
            if ip.interface is not None and not 0 <= ip.interface < len(self.interfaces):
                raise ValueError(f"ips[{i}].interface: there is no interface {ip.interface}")
        for i, route in enumerate(self.routes):
            _check(f"routes[{i}].dst", ip_interface, route.dst, "/" in route.dst)
            if route.gw:
                _check(f"routes[{i}].gw", ip_address, route.gw)


def parsed(form: Any) -> Result:
    """Return a result of any of the versions.

    Raises:
        ValueError: it is none; names the field.
    """
    try:
        return msgspec.convert(_without_nulls(form), Result)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def encoded(result: Result, version: str) -> bytes:
    """Return the result as JSON of a version of the specification."""
    form = msgspec.to_builtins(result)
    form = {"cniVersion": version, "dns": {}, **form}
    if version != VERSIONS[-1]:
        for part, keys in _NEWEST.items():
            for item in form.get(part, ()):
                for key in keys:
                    item.pop(key, None)
    if version in _WITH_FAMILY:
        for ip in form.get("ips", ()):
            ip["version"] = str(ip_interface(ip["address"]).version)
    return msgspec.json.encode(form)


def _check(field: str, form: Any, text: str, is_whole: bool = True) -> None:
    try:
        form(text)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
    if not is_whole:
        raise ValueError(f"{field}: {text!r} has no prefix length")


def _without_nulls(form: Any) -> Any:
    """Leave out members that are null, which some runtimes write for what is not there."""
    if isinstance(form, dict):
        return {key: _without_nulls(value) for key, value in form.items() if value is not None}
    return [_without_nulls(item) for item in form] if isinstance(form, list) else form

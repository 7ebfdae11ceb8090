# SPDX-License-Identifier: Apache-2.0
"""The file of ip-masq-agent: prefixes that are not masqueraded, read again when it changes.

::

    nonMasqueradeCIDRs: [10.0.0.0/8, 2001:db8::/32]
    masqLinkLocal: false
    masqLinkLocalIPv6: false

A file that is missing or empty stands for the default list. One that is broken changes nothing:
what was read last stays in force, and the health tells why. See
https://github.com/kubernetes-sigs/ip-masq-agent and Cilium's documentation of masquerading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import anyio.to_thread
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cilia.k8s.yaml_values import Malformed, parse_yaml
from cilia.linux.path_watch import PathWatch
from cilia.program.health import HealthReporter
from cilia.regular_files import read_regular
from statedb import Channel
from tables.addressing import Prefix

__all__ = ["DEFAULTS", "IPMasqAgentFile", "read"]

#: Cilium's list: private, shared, documentation, benchmarks, relays and reserved.
DEFAULTS: Final = tuple(
    Prefix.parse(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
    )
)
LINK_LOCAL: Final = Prefix.parse("169.254.0.0/16")
LINK_LOCAL6: Final = Prefix.parse("fe80::/10")

#: Some file systems announce nothing.
LOOK_AGAIN_S: Final = 60.0


def _prefix(value: Any) -> Prefix:
    if not isinstance(value, str) or "/" not in value:
        raise ValueError(f"{value!r} is not ADDRESS/LENGTH")
    return Prefix.parse(value)


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    prefixes: Annotated[
        list[Annotated[Prefix, BeforeValidator(_prefix)]], Field(alias="nonMasqueradeCIDRs")
    ] = []
    masquerade_link_local: Annotated[bool, Field(alias="masqLinkLocal", strict=True)] = False
    masquerade_link_local6: Annotated[bool, Field(alias="masqLinkLocalIPv6", strict=True)] = False
    # Of the program that the format is from; this file is read when it changes.
    resync_interval: Annotated[str, Field(alias="resyncInterval")] = ""


def read(data: bytes) -> tuple[Prefix, ...]:
    """Return the prefixes that a file says are not masqueraded.

    Raises: ValueError with the place of what is wrong.
    """
    try:
        form = parse_yaml(data)
        content = _Content.model_validate({} if form is None else form)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}") from None
    except (yaml.YAMLError, Malformed, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    found = list(DEFAULTS if form is None else content.prefixes)
    if not content.masquerade_link_local:
        found.append(LINK_LOCAL)
    if not content.masquerade_link_local6:
        found.append(LINK_LOCAL6)
    return tuple(dict.fromkeys(found))


class IPMasqAgentFile:
    """One task calls `run`."""

    def __init__(self, path: Path, health: HealthReporter) -> None:
        self._path = path
        self._health = health
        # A cache of the file: what it said when it could be read last.
        self._prefixes: tuple[Prefix, ...] | None = None
        self._changed = Channel()

    def prefixes_watch(self) -> tuple[tuple[Prefix, ...] | None, Channel]:
        """Return what the file says, None as long as it could not be read, and what closes then."""
        return self._prefixes, self._changed

    async def run(self) -> None:
        """Follow the file for ever."""
        while True:
            with PathWatch([self._path]) as watch:
                await self.look()
                await watch.wait(LOOK_AGAIN_S)

    async def look(self) -> None:
        """Read the file now, in a thread: its file system may hang."""
        try:
            prefixes = await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        except (OSError, ValueError) as error:
            kept = "what was read before stays" if self._prefixes is not None else "none is known"
            self._health.degraded(f"{self._path} cannot be read: {kept}", error)
            return
        self._health.ok(f"{len(prefixes)} prefixes are not masqueraded by {self._path}")
        if prefixes != self._prefixes:
            changed, self._changed = self._changed, Channel()
            self._prefixes = prefixes
            changed.close()

    def _read(self) -> tuple[Prefix, ...]:
        """A file that is missing is as an empty one. Raises: OSError, ValueError."""
        try:
            data = read_regular(self._path)
        except FileNotFoundError:
            data = b""
        return read(data)

# SPDX-License-Identifier: Apache-2.0
"""Where the API servers are: those that a person named, and those that the cluster last said.

The cluster's own word, the EndpointSlice of Service `default/kubernetes`, is kept in a file so that
a node finds its API server again when the named one is gone, without a ClusterIP that would need
this very agent to be translated. One server is used until it fails, then the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import structlog

from cilia.k8s.errors import AccessError
from cilia.k8s.objects import EndpointSlice
from cilia.linux.records import read_record, write_record

log = structlog.get_logger("k8s")

# The slices of this Service name the API servers.
SERVICE = ("default", "kubernetes")


class Server(msgspec.Struct, frozen=True, order=True):
    host: str
    port: int
    tls: bool = True

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_server(url: str) -> Server:
    """`https://HOST[:PORT]`, or without the scheme. Raises AccessError.

    >>> str(parse_server("https://10.0.0.1:6443")), str(parse_server("api.example"))
    ('https://10.0.0.1:6443', 'https://api.example:443')
    """
    text = url.strip()
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        port = parts.port
    except ValueError as error:
        raise AccessError(f"{url!r} is no address of an API server: {error}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path.strip("/")
        or parts.netloc.endswith(":")
    ):
        raise AccessError(f"{url!r} is no address of an API server: expected https://HOST:PORT")
    tls = parts.scheme == "https"
    return Server(parts.hostname, port or (443 if tls else 80), tls)


class Servers:
    """The addresses in order of preference, and which one is used. `kept` is the file, if any.

    Raises AccessError where there is no address at all.
    """

    def __init__(self, named: Iterable[Server], kept: Path | None = None) -> None:
        self._named = list(dict.fromkeys(named))
        self._kept = kept
        self._learned = (read_record(kept, list[Server]) or []) if kept is not None else []
        self._slices: dict[str, tuple[Server, ...]] = {}
        self._next = 0
        if not self.known:
            raise AccessError(
                "no address of an API server: name one with --k8s-api-server (the ClusterIP of a"
                " service account is none, this agent is to translate it)"
            )

    @property
    def known(self) -> list[Server]:
        return list(dict.fromkeys([*self._named, *self._learned]))

    @property
    def current(self) -> Server:
        known = self.known
        return known[self._next % len(known)]

    def renamed(self, before: str, after: str) -> None:
        """A kubeconfig says another URL than it did. Raises AccessError."""
        try:
            new = parse_server(after)
        except AccessError as error:
            raise AccessError(f"the kubeconfig: {error}") from None
        old = parse_server(before) if before else None
        self._named = list(dict.fromkeys(new if one == old else one for one in self._named))
        log.info("the kubeconfig names another API server", server=str(new))

    def failed(self, server: Server) -> None:
        """The next one, if this one is still the one in use."""
        known = self.known
        if known[self._next % len(known)] == server:
            self._next = (self._next + 1) % len(known)

    def learn(self, obj: EndpointSlice) -> None:
        """Takes what an object says if it is a slice of the API servers' Service."""
        labels = obj.metadata.labels or {}
        if (obj.metadata.namespace, labels.get(EndpointSlice.SERVICE_LABEL)) != SERVICE:
            return
        found = tuple(
            Server(address, port.port)
            for endpoint in obj.endpoints or ()
            if endpoint.conditions is None or endpoint.conditions.ready is not False
            for address in endpoint.addresses
            for port in obj.ports or ()
            if port.port and port.name in ("https", "", None)
        )
        if found:
            self._slices[obj.metadata.name] = found
            self._replace(sorted({server for group in self._slices.values() for server in group}))

    def forget(self, slice_name: str) -> None:
        """The slice is gone; the last ones that were known stay."""
        if self._slices.pop(slice_name, None) and self._slices:
            self._replace(sorted({server for group in self._slices.values() for server in group}))

    def _replace(self, learned: list[Server]) -> None:
        if learned == self._learned:
            return
        current = self.current
        self._learned = learned
        known = self.known
        self._next = known.index(current) if current in known else 0
        if self._kept is not None:
            self._keep(self._kept)

    def _keep(self, path: Path) -> None:
        """A file that cannot be written costs a later start its help, and nothing now."""
        try:
            write_record(path, self._learned)
        except OSError as error:
            log.warning("addresses of API servers are not kept", path=str(path), error=str(error))

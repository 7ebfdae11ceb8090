# SPDX-License-Identifier: Apache-2.0
"""Options that say which API server a program speaks to, and the client that they mean."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from cilia.program.errors import ProgramError
from cilia.program.options import ProgramConfig
from cilia.program.values import PositiveDuration
from cilia.script.environment import parse_duration

if TYPE_CHECKING:  # the options are read without loading the `kubernetes` package
    from cilia.k8s.access import Access
    from cilia.k8s.api_servers import Server, Servers
    from cilia.k8s.client import Client, Limits
    from cilia.k8s.writing import WritingClient

__all__ = ["KubernetesOptions", "open_client", "open_writing_client"]


class KubernetesOptions(ProgramConfig):
    """Where the API server is, who we are to it, how fast we may ask."""

    k8s_api_server: Annotated[
        str, Field(description="URL of the API server, e.g. https://10.0.0.1:6443.")
    ] = ""
    k8s_api_server_urls: Annotated[
        str, Field(description="Comma list of URLs of API servers; the next if one fails.")
    ] = ""
    k8s_kubeconfig_path: Annotated[
        Path | None, Field(description="kubeconfig with address and credentials.")
    ] = None
    k8s_client_qps: Annotated[
        int, Field(ge=1, description="Requests a second to the API server in the long run.")
    ] = 10
    k8s_client_burst: Annotated[
        int, Field(ge=1, description="Requests to the API server at once.")
    ] = 20
    k8s_client_connection_timeout: Annotated[
        PositiveDuration, Field(description="How long a connection to an API server may take.")
    ] = "5s"
    k8s_heartbeat_timeout: Annotated[
        PositiveDuration,
        Field(description="An API server that is silent for so long, also to pings, is given up."),
    ] = "3s"


def open_client(
    options: KubernetesOptions,
    *,
    kept: Path | None = None,
    report: Callable[[Server], None] = lambda server: None,
) -> Client:
    """A client with the options' addresses and credentials; it connects with the first request.

    `kept`: the file with the last known addresses.

    Raises:
        ProgramError: no address, or no usable credentials.
    """
    from cilia.k8s.client import Client

    return Client(*_connection(options, kept), report=report)


def open_writing_client(
    options: KubernetesOptions, *, kept: Path | None = None, service_address: bool = False
) -> WritingClient:
    """As `open_client`, one that also writes; it is used as a context.

    `service_address`: also the address that a pod's environment has, which is a ClusterIP.
    """
    from cilia.k8s.writing import WritingClient

    return WritingClient(*_connection(options, kept, service_address))


def _connection(
    options: KubernetesOptions, kept: Path | None, service_address: bool = False
) -> tuple[Access, Servers, Limits]:
    from cilia.k8s.access import Access
    from cilia.k8s.api_servers import Servers, parse_server
    from cilia.k8s.client import Limits
    from cilia.k8s.errors import AccessError

    try:
        named = f"{options.k8s_api_server},{options.k8s_api_server_urls}".split(",")
        urls = [url for url in named if url.strip()]
        # `kubectl proxy` and the like: nobody to show credentials to.
        plain = bool(urls) and all(url.strip().startswith("http://") for url in urls)
        access = Access(options.k8s_kubeconfig_path, anonymous=plain)
        urls += [access.server] if access.server else []
        if service_address and not urls:
            urls += _service_address()
        servers = Servers([parse_server(url) for url in urls], kept)
    except AccessError as error:
        raise ProgramError(str(error)) from None
    limits = Limits(
        connect_timeout_s=parse_duration(options.k8s_client_connection_timeout),
        heartbeat_timeout_s=parse_duration(options.k8s_heartbeat_timeout),
        qps=options.k8s_client_qps,
        burst=options.k8s_client_burst,
    )
    return access, servers, limits


def _service_address() -> list[str]:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host:
        return []
    return [f"https://{f'[{host}]' if ':' in host else host}:{port or 443}"]

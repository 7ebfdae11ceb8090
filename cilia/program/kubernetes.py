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

if TYPE_CHECKING:  # the options are read without loading the `kubernetes` package
    from cilia.k8s.api_servers import Server
    from cilia.k8s.writing import WritingClient

__all__ = ["KubernetesOptions", "open_client"]


class KubernetesOptions(ProgramConfig):
    """Where the API server is, who we are to it, how fast we may ask."""

    k8s_api_server: Annotated[
        str, Field(description="Comma list of URLs of API servers, e.g. https://10.0.0.1:6443.")
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


def open_client(
    options: KubernetesOptions,
    *,
    service_address: bool = False,
    kept: Path | None = None,
    report: Callable[[Server], None] = lambda server: None,
) -> WritingClient:
    """A client with the options' addresses and credentials; it connects with the first request.

    Readers are to be given it as a `Client`.
    `service_address`: also the address that a pod's environment has, which is a ClusterIP. `kept`:
    the file with the last known addresses.

    Raises:
        ProgramError: no address, or no usable credentials.
    """
    from cilia.k8s.access import Access
    from cilia.k8s.api_servers import Servers, parse_server
    from cilia.k8s.client import Limits
    from cilia.k8s.errors import AccessError
    from cilia.k8s.writing import WritingClient

    try:
        access = Access(options.k8s_kubeconfig_path)
        urls = [url for url in options.k8s_api_server.split(",") if url.strip()]
        urls += [access.server] if access.server else []
        if service_address and not urls:
            urls += _service_address()
        servers = Servers([parse_server(url) for url in urls], kept)
    except AccessError as error:
        raise ProgramError(str(error)) from None
    limits = Limits(qps=options.k8s_client_qps, burst=options.k8s_client_burst)
    return WritingClient(access, servers, limits, report=report)


def _service_address() -> list[str]:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host:
        return []
    return [f"https://{f'[{host}]' if ':' in host else host}:{port or 443}"]

# SPDX-License-Identifier: Apache-2.0
"""The life of an operator: listeners first, so that a wrong address ends the start; then it takes
part in the election until it is told to end, and gives the Lease back."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from cilia.cluster.access_options import open_writing_client
from cilia.k8s.object_files import ObjectFiles
from cilia.k8s.object_writer import ObjectWriter
from cilia.operator.collection import open_objects
from cilia.operator.config import OperatorConfig
from cilia.operator.wiring import Operator, build
from cilia.program.errors import ProgramError
from cilia.program.serving import application, metrics_routes, serve, tcp_socket

log = structlog.get_logger("operator")


async def run(config: OperatorConfig) -> None:
    """Until cancelled.

    Raises:
        ProgramError: no API server is named, no credentials, or an address is taken.
    """
    identity = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    async with _writer(config) as writer:
        operator = build(config, writer, identity)
        async with anyio.create_task_group() as group:
            for app, listener in _listeners(operator):
                group.start_soon(serve, app, listener)
            log.info("started", identity=identity, namespace=config.k8s_namespace)
            await operator.election.run(operator.lead)


@asynccontextmanager
async def _writer(config: OperatorConfig) -> AsyncIterator[ObjectWriter]:
    """What writes the Lease and, but for files, kinds. Raises: ProgramError."""
    if config.pod_network and (config.k8s_manifests or config.k8s_objects_dir):
        open_objects(config)  # raises before anybody leads
    if config.k8s_manifests is None:
        async with open_writing_client(config, service_address=True) as client:
            yield client
    elif config.pod_network and config.k8s_objects_dir is not None:
        yield ObjectFiles(config.k8s_objects_dir)
    else:
        raise ProgramError(
            "--k8s-manifests needs --k8s-objects-dir and --pod-network: an operator has nothing to"
            " do for manifests alone"
        )


def _listeners(operator: Operator) -> list[tuple[Starlette, socket.socket]]:
    config = operator.config
    asked = [
        (
            "--operator-prometheus-serve-addr",
            config.operator_prometheus_serve_addr,
            metrics_routes(operator.registry),
        ),
        ("--operator-api-serve-addr", config.operator_api_serve_addr, health_routes(operator)),
    ]
    return [
        (application(routes), tcp_socket(option, address))
        for option, address, routes in asked
        if address
    ]


def health_routes(operator: Operator) -> list[BaseRoute]:
    """What probes ask: 200 or 503.

    `/livez`: the process answers. `/readyz`: somebody leads, whose lease was renewed in time.
    `/healthz`: no job fails, and the Lease can be written where nobody leads; names what does not.
    """
    election = operator.election

    def healthz(_: Request) -> Response:
        degraded = operator.degraded()
        body = {"status": "degraded" if degraded else "ok", "degraded": degraded}
        return JSONResponse(body, status_code=503 if degraded else 200)

    def readyz(_: Request) -> Response:
        leader = election.present_leader
        body = {"leader": leader, "leading": election.leading}
        return JSONResponse(body, status_code=200 if leader else 503)

    return [
        Route("/healthz", healthz),
        Route("/livez", lambda _: JSONResponse({"status": "ok"})),
        Route("/readyz", readyz),
    ]

# SPDX-License-Identifier: Apache-2.0
"""HTTP of the agent: everything on a unix socket of mode 0600, metrics and health also over TCP.

Table dumps never leave the socket. Each TCP listener answers its one path only.
"""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from cilia.agent.config import AgentConfig
from cilia.agent.status import StatusView
from cilia.program.logging import RECENT
from cilia.program.serving import application, metrics_routes

__all__ = [
    "config_routes",
    "health_app",
    "health_routes",
    "log_routes",
    "metrics_app",
    "status_routes",
]


def health_app(status: StatusView) -> Starlette:
    return application(health_routes(status))


def metrics_app(registry: CollectorRegistry) -> Starlette:
    return application(metrics_routes(registry))


def health_routes(status: StatusView) -> list[BaseRoute]:
    """What probes ask: 200 or 503.

    `/livez`: the agent answers; it is for others to say that it must be started anew. `/readyz`: it
    has read all of its inputs. `/healthz`: nothing is degraded; names what is.
    """

    def healthz(_: Request) -> Response:
        degraded = status.degraded()
        body = {"status": "degraded" if degraded else "ok", "degraded": degraded}
        return JSONResponse(body, status_code=503 if degraded else 200)

    def readyz(_: Request) -> Response:
        listed = status.listed()
        body = {"status": "ok" if listed else "inputs are not read yet"}
        return JSONResponse(body, status_code=200 if listed else 503)

    return [
        Route("/healthz", healthz),
        Route("/livez", lambda _: JSONResponse({"status": "ok"})),
        Route("/readyz", readyz),
    ]


def status_routes(status: StatusView) -> list[BaseRoute]:
    return [Route("/status", lambda _: JSONResponse(status.as_dict()))]


def log_routes() -> list[BaseRoute]:
    """`/logs`: the end of what the agent logged."""
    return [Route("/logs", lambda _: PlainTextResponse(RECENT.text()))]


def config_routes(config: AgentConfig) -> list[BaseRoute]:
    """`/config`: every option with its value and origin."""
    rows = msgspec.to_builtins(config.settings())
    return [Route("/config", lambda _: JSONResponse(rows))]

# SPDX-License-Identifier: Apache-2.0
"""The listeners of an agent: everything on its unix socket, single paths over TCP if asked for."""

from __future__ import annotations

import socket

from anyio.abc import TaskGroup
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from cilia.agent import server
from cilia.agent.shell import shell_routes
from cilia.agent.state_directory import ControlSocket, sentence
from cilia.agent.wiring import Agent
from cilia.flows.routes import event_routes
from cilia.linux.lock import InstanceLock
from cilia.loadbalancer.proxy_healthz import proxy_healthz_app
from cilia.loadbalancer.replacement import Replacement, replacement_routes
from cilia.program.health import HealthReporter
from cilia.program.serving import application, metrics_routes, serve, tcp_socket, within_deadline
from statedb.web.server import routes as table_routes

__all__ = ["agent_routes", "start_servers"]


def agent_routes(agent: Agent, replacement: Replacement) -> list[BaseRoute]:
    """Return everything that the unix socket answers."""
    ctx, status = agent.ctx, agent.observation.status
    return [
        *server.status_routes(status),
        *server.config_routes(agent.config),
        *server.log_routes(),
        *server.health_routes(status),
        *metrics_routes(ctx.registry),
        *table_routes(ctx.db),
        *shell_routes(agent),
        *replacement_routes(replacement),
        *([] if agent.flows is None else event_routes(agent.flows.reader)),
    ]


def start_servers(
    group: TaskGroup, agent: Agent, replacement: Replacement, lock: InstanceLock
) -> None:
    """Bind all sockets first, so that a wrong address ends the start; then serve.

    Raises:
        ProgramError: an address cannot be bound.
    """
    config, ctx, status = agent.config, agent.ctx, agent.observation.status
    health = HealthReporter(ctx.db, ctx.health, "agent", "state-directory")
    with sentence():
        control = ControlSocket(config, lock, health)
    serving: list[tuple[Starlette, socket.socket]] = []
    if config.prometheus_serve_addr:
        listener = tcp_socket("--prometheus-serve-addr", config.prometheus_serve_addr)
        serving.append((server.metrics_app(ctx.registry), listener))
    if config.agent_health_port:
        listener = tcp_socket("--agent-health-port", f"127.0.0.1:{config.agent_health_port}")
        serving.append((server.health_app(status), listener))
    if address := config.kube_proxy_replacement_healthz_bind_address:
        listener = tcp_socket("--kube-proxy-replacement-healthz-bind-address", address)
        serving.append((proxy_healthz_app(ctx.db, ctx.health), listener))
    routes = agent_routes(agent, replacement)
    group.start_soon(control.run, within_deadline(application(routes)))
    for app, listener in serving:
        group.start_soon(serve, app, listener)

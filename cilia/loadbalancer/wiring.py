# SPDX-License-Identifier: Apache-2.0
"""What services are made of beside the objects of the one source: built here, run by the wiring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bpf.maps.redirect_skips import SkipMaps
from cilia.cluster.problems import ProblemReflector
from cilia.k8s.state_file import state_file_source
from cilia.k8s.watch import Source as Objects
from cilia.loadbalancer.health_checks import HealthCheckController
from cilia.loadbalancer.options import ServiceOptions
from cilia.loadbalancer.redirects.controller import RedirectController, RedirectTables
from cilia.loadbalancer.redirects.reflector import redirect_policy_reflector
from cilia.loadbalancer.reflector import ServiceReflector
from cilia.loadbalancer.writer import Writer
from reconcilers.config import Config
from reconcilers.loadbalancer.health_check_ports import HealthPortOperations
from reconcilers.loadbalancer.redirect_skips import RedirectSkipOperations
from reconcilers.metrics import Metrics
from reconcilers.reconciler import Health, Reconciler
from reconcilers.verify import Drift
from statedb import DB, RWTable, Table
from tables.cluster.nodes import Node
from tables.cluster.pod_namespaces import new_pod_namespaces_table
from tables.cluster.pods import Pod
from tables.loadbalancer import health_check_ports, redirect_skips
from tables.loadbalancer.health_check_ports import HealthCheckPort
from tables.loadbalancer.redirect_policies import new_redirect_policies_table
from tables.problems import Problem
from tables.sources import Source

__all__ = ["health_check_jobs", "new_redirect_tables", "redirect_jobs", "state_file_jobs"]

Jobs = dict[str, Callable[[], Awaitable[object]]]


def state_file_jobs(
    config: ServiceOptions, db: DB, problems: RWTable[Problem], writer: Writer
) -> Jobs:
    """Services of `--lb-state-file`, less preferred than those of the API server; or nothing."""
    if config.lb_state_file is None:
        return {}
    source = state_file_source(config.lb_state_file, config.lb_state_file_interval_s)
    services = ServiceReflector(source, writer, origin=Source.API)
    refused = ProblemReflector(source, db, problems, name="lb-state-file")
    return {
        "watch-state-file": source.run,
        "reflect-state-file": services.run,
        "reflect-state-file-problems": refused.run,
    }


def new_redirect_tables(db: DB, pods: RWTable[Pod]) -> RedirectTables:
    """The tables are there, and empty, also while `--enable-local-redirect-policy` is off."""
    return RedirectTables(
        policies=new_redirect_policies_table(db),
        pods=pods,
        namespaces=new_pod_namespaces_table(db),
        skips=redirect_skips.new_redirect_skips_table(db),
    )


def redirect_jobs(
    config: ServiceOptions,
    db: DB,
    tables: RedirectTables,
    source: Objects,
    writer: Writer,
    maps: SkipMaps | None,
    *,
    drift: RWTable[Drift],
    health: Health,
    metrics: Metrics,
) -> Jobs:
    """Local redirect policies, from objects to maps."""
    if not config.enable_local_redirect_policy:
        return {}
    problems = writer.tables.problems
    policies = redirect_policy_reflector(
        source, db, tables.policies, problems, allowed=config.lrp_networks
    )
    jobs: Jobs = {
        "reflect-redirect-policies": policies.run,
        "redirect-policies": RedirectController(writer, tables).run,
    }
    if maps is not None:
        retry_min_s, retry_max_s = config.lb_retry_backoff_s
        jobs["reconcile-skip-redirects"] = Reconciler(
            db,
            tables.skips,
            RedirectSkipOperations(maps),
            get_status=redirect_skips.get_status,
            set_status=redirect_skips.set_status,
            config=Config(retry_backoff_min_s=retry_min_s, retry_backoff_max_s=retry_max_s),
            health=health,
            metrics=metrics,
            drift=drift,
        ).run
    return jobs


def health_check_jobs(
    config: ServiceOptions,
    ports: RWTable[HealthCheckPort],
    nodes: Table[Node],
    writer: Writer,
    address: str,
    *,
    health: Health,
    metrics: Metrics,
) -> Jobs:
    """Health check node ports, answered at `address`."""
    if not config.enable_health_check_nodeport:
        return {}
    retry_min_s, retry_max_s = config.lb_retry_backoff_s
    reconciler = Reconciler(
        writer.db,
        ports,
        HealthPortOperations(writer.db, ports, address),
        get_status=health_check_ports.get_status,
        set_status=health_check_ports.set_status,
        config=Config(retry_backoff_min_s=retry_min_s, retry_backoff_max_s=retry_max_s),
        health=health,
        metrics=metrics,
    )
    return {
        "health-checks": HealthCheckController(writer, nodes, ports).run,
        "reconcile-health-check-ports": reconciler.run,
    }

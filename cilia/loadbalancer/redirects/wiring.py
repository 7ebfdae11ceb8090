# SPDX-License-Identifier: Apache-2.0
"""Local redirect policies, wired: objects -> policies -> redirected frontends, spared pods."""

from __future__ import annotations

from bpf.maps.redirect_skips import SkipMaps
from cilia.cluster.pod_namespaces import PodNamespaceReflector
from cilia.cluster.wiring import ClusterPart
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.redirects.controller import RedirectController, RedirectTables
from cilia.loadbalancer.redirects.reflector import redirect_policy_reflector
from cilia.loadbalancer.services.writer import Writer
from cilia.program.parts import Context, Part
from reconcilers.config import Config
from reconcilers.loadbalancer.redirect_skips import RedirectSkipOperations
from tables.cluster.pod_namespaces import new_pod_namespaces_table
from tables.loadbalancer import redirect_skips
from tables.loadbalancer.redirect_policies import new_redirect_policies_table

__all__ = ["build", "new_redirect_tables"]


def new_redirect_tables(ctx: Context, cluster: ClusterPart) -> RedirectTables:
    """The tables are there, and empty, also while `--enable-local-redirect-policy` is off."""
    return RedirectTables(
        policies=new_redirect_policies_table(ctx.db),
        pods=cluster.pods,
        namespaces=new_pod_namespaces_table(ctx.db),
        skips=redirect_skips.new_redirect_skips_table(ctx.db),
    )


def build(
    ctx: Context,
    options: LoadBalancerOptions,
    tables: RedirectTables,
    writer: Writer,
    maps: SkipMaps | None,
    *,
    on_node: bool,
) -> Part:
    """Nothing runs while the option is off; `maps` None: these programs spare nobody."""
    if not options.enable_local_redirect_policy:
        return Part()
    policies = redirect_policy_reflector(
        ctx.objects, ctx.db, tables.policies, ctx.problems, allowed=options.lrp_networks
    )
    part = Part()
    part.jobs = {
        "reflect-redirect-policies": policies.run,
        "redirect-policies": RedirectController(writer, tables).run,
    }
    if on_node:
        namespaces = PodNamespaceReflector(ctx.db, tables.pods, tables.namespaces)
        part.jobs["reflect-pod-namespaces"] = namespaces.run
    if maps is not None:
        retry_min_s, retry_max_s = options.lb_retry_backoff_s
        part.jobs["reconcile-skip-redirects"] = ctx.reconciler(
            tables.skips,
            RedirectSkipOperations(maps),
            module="redirectpolicy",
            config=Config(retry_backoff_min_s=retry_min_s, retry_backoff_max_s=retry_max_s),
        ).run
    return part

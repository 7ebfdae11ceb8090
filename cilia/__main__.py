# SPDX-License-Identifier: Apache-2.0
"""The `cilia` command: maps each sub-command to `module:function` and imports it on demand.

The only module above all ranks. A status command must not pay for an agent, so nothing is imported
here but click; the one-line helps stand here too, so that `cilia --help` imports no sub-command.
"""

from __future__ import annotations

import gc
import glob
import importlib
import re
from typing import Any, cast

import click

from cilia.program.instance_name import DEFAULT_INSTANCE, PATTERN
from cilia.program.lost_output import told_if_lost

COMMANDS = {
    "agent": ("cilia.agent.command:agent", "Run the agent of this node in the foreground."),
    "bpf": ("cilia.datapath.cli.bpf:bpf", "Read the pinned BPF maps, also while no agent runs."),
    "build-config": (
        "cilia.agent.build_config:build_config",
        "Write this node's options from the API server.",
    ),
    "cleanup": ("cilia.agent.cleanup:cleanup", "Remove everything that an instance ever made."),
    "completion": ("cilia.cli.completion:completion", "Print the completion script of a shell."),
    "config": ("cilia.agent.config_command:config", "Show every option and where it came from."),
    "db": ("cilia.cli.db:db", "Show the agent's tables."),
    "endpoint": (
        "cilia.endpoints.cli:endpoint",
        "List the workloads of this node, and what is in force of each.",
    ),
    "identity": ("cilia.identity.cli:identity", "List security identities."),
    "install": ("cilia.cli.install.install:install", "Install on a Kubernetes cluster."),
    "ip": (
        "cilia.identity.ipcache.cli:ip",
        "List which identity is behind which address.",
    ),
    "ipam": ("cilia.ipam.cli:ipam", "List the addresses of this node's pods."),
    "monitor": (
        "cilia.flows.cli.monitor:monitor",
        "Show packets that are dropped and passed, as it happens.",
    ),
    "operator": ("cilia.operator.command:operator", "Run the cluster-wide program."),
    "lb": ("cilia.loadbalancer.cli.lb:lb", "Ask which backend a client gets, and why."),
    "lrp": ("cilia.loadbalancer.cli.redirects:lrp", "List local redirect policies."),
    "quickstart": ("cilia.cli.quickstart:quickstart", "A Service on this machine, in a minute."),
    "replacement": (
        "cilia.loadbalancer.cli.replacement:replacement",
        "Hand Services back to kube-proxy, or take them over.",
    ),
    "script": ("cilia.cli.script:script", "Run golden scripts."),
    "service": (
        "cilia.loadbalancer.cli.service:service",
        "List Services, their frontends and backends.",
    ),
    "shell": ("cilia.cli.shell:shell", "Type script commands at a running agent."),
    "status": ("cilia.cli.status:status", "Is the agent well, and is everything in force?"),
    "sysdump": ("cilia.cli.sysdump.command:sysdump", "Gather what this node knows in an archive."),
    "uninstall": ("cilia.cli.install.uninstall:uninstall", "Clean all nodes of a cluster."),
}


class LazyGroup(click.Group):
    """A group whose sub-commands are imported when they are called."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what an error tells of others' names is escaped."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            from statedb.shown.text import visible

            error.message = visible(error.message, keep="\n\t")  # type: ignore[misc]
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def _running_instance() -> str:
    """The default instance, or the only other one whose socket exists."""
    sockets = glob.glob("/run/cilia*/cilia.sock")
    names = [path.split("/")[2] for path in sockets]
    return names[0] if len(names) == 1 else DEFAULT_INSTANCE


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--instance",
    envvar="CILIA_INSTANCE",
    metavar="NAME",
    help="Which agent on this machine; default: cilia, or the only one that runs.",
)
@click.option(
    "--socket",
    envvar="CILIA_SOCKET",
    metavar="PATH",
    help="The agent's socket; default: /run/INSTANCE/cilia.sock.",
)
@click.version_option(package_name="cilia", prog_name="cilia")
@click.pass_context
def cli(ctx: click.Context, instance: str | None, socket: str | None) -> None:
    """Kubernetes networking on eBPF: the Services of this node.

    \b
    Examples:
      cilia agent --k8s-manifests /etc/cilia/manifests
      cilia status
      cilia db show frontends -o yaml
      cilia bpf lb list
    """
    if instance is not None and not re.fullmatch(PATTERN, instance):
        raise click.BadParameter(f"{instance!r} is no name of an instance", param_hint="--instance")
    name = instance or _running_instance()
    ctx.obj = {
        "explicit_instance": instance,
        "instance": name,
        "socket": socket or f"/run/{name}/cilia.sock",
    }


def main() -> None:
    # Modules and tables are many small objects in no cycles: with the default thresholds the
    # collector walks them again and again. It is a tenth of the time that an agent loads for, and
    # the p99 of a commit on a million rows is 20 ms (with these: 1 ms).
    gc.set_threshold(50_000, 50, 100)
    with told_if_lost():
        cli(prog_name="cilia")


if __name__ == "__main__":
    main()

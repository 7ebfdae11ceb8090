# SPDX-License-Identifier: Apache-2.0
"""The agent's options: the models of its features and what the program itself has.

One validated model; `cilia.program.options` says where it is read from. A feature is handed this
model as its own (`LoadBalancerOptions` …), and reads nothing else of it. An option has the field's
name for it where there is one (`--kube-proxy-replacement`, `--bpf-lb-map-max`). Unknown options are
errors.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from cilia.agent.budgets import parse_budgets
from cilia.cluster.options import ClusterOptions
from cilia.datapath.chaining_options import BEHIND, NONE, PORTMAP
from cilia.endpoints.options import EndpointOptions
from cilia.flows.options import EventOptions
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.masquerade.options import MasqueradeOptions
from cilia.node.options import NodeOptions
from cilia.program.values import Duration, ListenAddress
from cilia.script.environment import parse_duration

__all__ = ["AgentConfig"]


class AgentConfig(
    ClusterOptions,
    NodeOptions,
    EndpointOptions,
    MasqueradeOptions,
    EventOptions,
    LoadBalancerOptions,
):
    """Everything that a person may set, with its default; frozen once read."""

    prometheus_serve_addr: Annotated[
        ListenAddress, Field(description="Serve /metrics on HOST:PORT (loopback if no host).")
    ] = None
    agent_health_port: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="Serve /healthz, /livez and /readyz on this port of 127.0.0.1; 0: not.",
        ),
    ] = 0
    statedb_history: Annotated[
        int,
        Field(ge=0, le=100_000, description="Past states of the tables kept for --at-revision."),
    ] = 32
    statedb_budget: Annotated[
        str,
        Field(
            description="MiB that a table is meant to stay within: one number for all, TABLE=MIB"
            " for single ones, by commas. The status marks a table that is over."
        ),
    ] = "256"
    metrics_sampling_interval: Annotated[
        Duration, Field(description="How often metrics are sampled for `metrics -s`; 0: never.")
    ] = "5m"
    metrics: Annotated[
        str,
        Field(description="Metrics to leave out (-NAME) or to keep (+NAME), by blanks or commas."),
    ] = ""

    @field_validator("statedb_budget")
    @classmethod
    def _statedb_budget(cls, value: str) -> str:
        parse_budgets(value)
        return value

    @property
    def table_budgets(self) -> dict[str, int]:
        """Bytes by table; see `cilia.agent.budgets`."""
        return parse_budgets(self.statedb_budget)

    @model_validator(mode="after")
    def _inputs_lie_elsewhere(self) -> Self:
        """What is not the agent's own would be taken for it, and copies of files for files."""
        for option, path in (
            ("k8s-manifests", self.k8s_manifests),
            ("k8s-objects-dir", self.k8s_objects_dir),
            ("lb-state-file", self.lb_state_file),
        ):
            if path is not None and path.resolve().is_relative_to(self.run_dir.resolve()):
                raise ValueError(
                    f"--{option}={path} lies in the state directory {self.run_dir}, which is the"
                    " agent's own: name another place"
                )
        return self

    @model_validator(mode="after")
    def _objects_are_shared(self) -> Self:
        """A directory of objects that nobody writes to, or that is read as manifests too."""
        directory = self.k8s_objects_dir
        if directory is None:
            return self
        if not self.pod_network:
            raise ValueError(
                "--k8s-objects-dir has what agents write with --pod-network: leave it out without"
            )
        if self.k8s_manifests is not None and directory.resolve() == self.k8s_manifests.resolve():
            raise ValueError(
                f"--k8s-objects-dir={directory} is the directory of --k8s-manifests, which is only"
                " read: name another one"
            )
        return self

    @model_validator(mode="after")
    def _other_plugins_have_their_part(self) -> Self:
        mode = self.cni_chaining_mode
        if mode != NONE and not self.pod_network:
            raise ValueError(
                f"--cni-chaining-mode={mode} says how our plugin works with others: it needs"
                " --pod-network"
            )
        if mode == PORTMAP and self.kube_proxy_replacement:
            raise ValueError(
                "--cni-chaining-mode=portmap: cilia serves host ports itself; leave the mode out,"
                " or say --kube-proxy-replacement=false"
            )
        if self.cni_chaining_target and not self.is_behind:
            raise ValueError(
                f"--cni-chaining-target={self.cni_chaining_target} needs --cni-chaining-mode:"
                f" {', '.join(BEHIND)}"
            )
        has_list = self.read_cni_conf or self.cni_conf_path is None or self.chaining_network
        if self.is_behind and not has_list:
            raise ValueError(
                f"--cni-chaining-mode={mode} needs the name of the other plugin's network:"
                " --cni-chaining-target, or a list of your own, --read-cni-conf"
            )
        return self

    @property
    def metrics_sampling_interval_s(self) -> float:
        return parse_duration(self.metrics_sampling_interval)

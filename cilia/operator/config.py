# SPDX-License-Identifier: Apache-2.0
"""The operator's options; `cilia.program.options` says where they are read from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from cilia.cluster.options import SourceOptions
from cilia.operator.election import Timing
from cilia.program.values import Duration, ListenAddress, PositiveDuration
from cilia.script.environment import parse_duration

__all__ = ["OperatorConfig"]


class OperatorConfig(SourceOptions):
    """Everything that a person may set, with its default; frozen once read."""

    k8s_namespace: Annotated[
        str, Field(min_length=1, description="Namespace of the operator and of its Lease.")
    ] = "kube-system"
    leader_election_resource_name: Annotated[
        str, Field(min_length=1, description="Name of the Lease.")
    ] = "cilia-operator-resource-lock"
    leader_election_lease_duration: Annotated[
        PositiveDuration,
        Field(description="How long others wait for a leader that says nothing (whole seconds)."),
    ] = "6s"
    leader_election_renew_deadline: Annotated[
        PositiveDuration, Field(description="A leader that cannot renew for so long stops working.")
    ] = "4s"
    leader_election_retry_period: Annotated[
        PositiveDuration, Field(description="Time between two tries to take or renew the Lease.")
    ] = "1s"
    pod_network: Annotated[
        bool,
        Field(description="Agents are the pod network (--pod-network): register its kinds too."),
    ] = False
    skip_crd_creation: Annotated[
        bool, Field(description="Do not register kinds: somebody else does.")
    ] = False
    identity_gc_interval: Annotated[
        Duration,
        Field(description="How often unused identities are looked for (--pod-network); 0: never."),
    ] = "15m"
    identity_heartbeat_timeout: Annotated[
        PositiveDuration,
        Field(description="An identity that is unused for so long is marked, then deleted."),
    ] = "30m"
    identity_gc_rate_limit: Annotated[
        int, Field(ge=1, description="Identities marked or deleted within the rate interval.")
    ] = 2500
    identity_gc_rate_interval: Annotated[
        PositiveDuration, Field(description="The time that --identity-gc-rate-limit is about.")
    ] = "1m"
    cilium_endpoint_gc_interval: Annotated[
        Duration,
        Field(
            description="How often CiliumEndpoints without a pod are looked for (--pod-network):"
            " one goes that is there at two looks; 0: never."
        ),
    ] = "5m"
    operator_prometheus_serve_addr: Annotated[
        ListenAddress, Field(description="Serve /metrics on HOST:PORT (loopback if no host).")
    ] = "127.0.0.1:9963"
    operator_api_serve_addr: Annotated[
        ListenAddress,
        Field(description="Serve /healthz, /livez and /readyz on HOST:PORT (loopback if no host)."),
    ] = "127.0.0.1:9234"

    @property
    def timing(self) -> Timing:
        return Timing(
            parse_duration(self.leader_election_lease_duration),
            parse_duration(self.leader_election_renew_deadline),
            parse_duration(self.leader_election_retry_period),
        )

    @model_validator(mode="after")
    def _collects_what_it_counts(self) -> OperatorConfig:
        endpoints_s = parse_duration(self.cilium_endpoint_gc_interval)
        if parse_duration(self.identity_gc_interval) and not endpoints_s:
            raise ValueError(
                "--identity-gc-interval needs --cilium-endpoint-gc-interval: an identity is used as"
                " long as a CiliumEndpoint has it; set both to 0 to collect nothing"
            )
        return self

    @model_validator(mode="after")
    def _times_that_fit(self) -> OperatorConfig:
        _ = self.timing
        return self

# SPDX-License-Identifier: Apache-2.0
"""The operator's options; `cilia.program.options` says where they are read from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from cilia.cluster.access_options import KubernetesOptions
from cilia.operator.election import Timing
from cilia.program.values import ListenAddress, PositiveDuration
from cilia.script.environment import parse_duration

__all__ = ["OperatorConfig"]


class OperatorConfig(KubernetesOptions):
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
    def _times_that_fit(self) -> OperatorConfig:
        _ = self.timing
        return self

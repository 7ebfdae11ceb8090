# SPDX-License-Identifier: Apache-2.0
"""The agent's options on the load balancer, and those on what services are made of.

Named and, with one exception, set as in the field: health check node ports are on, redirect
policies and scale-to-zero are not. Durations are written as Go does (`1s`, `1m30s`).
"""

from __future__ import annotations

import ipaddress
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from cilia.k8s.manifest_files import READERS
from cilia.loadbalancer.frontend_options import FrontendOptions
from cilia.loadbalancer.map_options import MapOptions
from cilia.loadbalancer.socket_options import SocketOptions
from cilia.program.instance import InstanceOptions
from cilia.program.options import ProgramConfig
from cilia.program.values import Duration, ListenAddress
from cilia.script.environment import parse_duration
from tables.loadbalancer.services import IPNetwork

__all__ = ["LoadBalancerOptions", "ServiceOptions"]


def _networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def _network_list(text: str) -> str:
    return ",".join(map(str, _networks(text)))


def _state_file(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in READERS:
        raise ValueError(f"the name must end in one of {', '.join(READERS)}")
    return path


class ServiceOptions(ProgramConfig):
    """Further sources of services, redirect policies, health ports, retries."""

    k8s_service_proxy_name: Annotated[
        str,
        Field(
            description="Serve only services with this service.kubernetes.io/service-proxy-name;"
            " default: only those without."
        ),
    ] = ""
    lb_state_file: Annotated[
        Path | None,
        Field(description="YAML or JSON file with further services and their endpoints."),
        AfterValidator(_state_file),
    ] = None
    lb_state_file_interval: Annotated[
        Duration, Field(description="How long that file must rest before it is read.")
    ] = "1s"
    enable_local_redirect_policy: Annotated[
        bool, Field(description="Follow CiliumLocalRedirectPolicy objects.")
    ] = False
    lrp_address_matcher_cidrs: Annotated[
        str,
        Field(description="Comma list of CIDRs in which address matchers must be; empty: any."),
        AfterValidator(_network_list),
    ] = ""
    enable_health_check_nodeport: Annotated[
        bool,
        Field(description="Answer at healthCheckNodePort of services with a Local policy."),
    ] = True
    enable_health_check_loadbalancer_ip: Annotated[
        bool, Field(description="Answer those health checks at load-balancer addresses too.")
    ] = False
    kube_proxy_replacement_healthz_bind_address: Annotated[
        ListenAddress,
        Field(description="Serve kube-proxy's /healthz on HOST:PORT (loopback if no host)."),
    ] = None
    enable_scale_to_zero: Annotated[
        bool, Field(description="Mark services that wake up by traffic for the datapath.")
    ] = False
    lb_retry_backoff_min: Annotated[
        Duration, Field(description="First wait before an object that failed is tried again.")
    ] = "100ms"
    lb_retry_backoff_max: Annotated[
        Duration, Field(description="Longest wait between two tries of an object that fails.")
    ] = "1m"

    @property
    def lrp_networks(self) -> tuple[IPNetwork, ...]:
        return _networks(self.lrp_address_matcher_cidrs)

    @property
    def lb_retry_backoff_s(self) -> tuple[float, float]:
        """First and longest wait, in seconds."""
        return parse_duration(self.lb_retry_backoff_min), parse_duration(self.lb_retry_backoff_max)

    @property
    def lb_state_file_interval_s(self) -> float:
        return parse_duration(self.lb_state_file_interval)

    @cached_property  # looked at for each Service
    def health_check_loadbalancer_ip(self) -> bool:
        """True if health checks are answered, and at load-balancer addresses too."""
        return self.enable_health_check_nodeport and self.enable_health_check_loadbalancer_ip


class LoadBalancerOptions(
    ServiceOptions, SocketOptions, FrontendOptions, MapOptions, InstanceOptions
):
    """All options of the feature; handed on whole to whoever reads one."""

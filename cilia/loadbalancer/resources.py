# SPDX-License-Identifier: Apache-2.0
"""What the load balancer reads of the cluster, narrowed as the field narrows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cilia.loadbalancer.options import LoadBalancerOptions

if TYPE_CHECKING:  # without an API server the `kubernetes` package is not loaded
    from cilia.k8s.resource import Resource

__all__ = ["service_resources"]

_SERVICE_PROXY_NAME: Final = "service.kubernetes.io/service-proxy-name"
_HEADLESS: Final = "service.kubernetes.io/headless"


def service_resources(options: LoadBalancerOptions) -> Iterator[Resource]:
    """Return Services and their EndpointSlices, and redirect policies if they are followed."""
    from cilia.k8s import objects as k8s
    from cilia.k8s.crds import CiliumLocalRedirectPolicy
    from cilia.k8s.resource import Resource

    proxy = options.k8s_service_proxy_name
    ours = f"{_SERVICE_PROXY_NAME}={proxy}" if proxy else f"!{_SERVICE_PROXY_NAME}"
    yield Resource(k8s.Service, ours)
    # Slices of headless Services have no frontend to serve.
    yield Resource(k8s.EndpointSlice, f"{ours},!{_HEADLESS}")
    if options.enable_local_redirect_policy:
        yield Resource(CiliumLocalRedirectPolicy)

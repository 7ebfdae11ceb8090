# SPDX-License-Identifier: Apache-2.0
"""The service account of the agents: what the chart gives them, and nothing more."""

from __future__ import annotations

from typing import Any, Final

import yaml

from cilia.cli.install.manifests import Values, manifests
from tests.install.rendered import template
from tests.kube.apiserver import ApiServer

NAMESPACE: Final = "kube-system"
ACCOUNT: Final = "cilia"
USER: Final = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
#: The account, and each rule and binding that the chart has for it.
RIGHTS: Final = {
    "ServiceAccount": ("cilia",),
    "ClusterRole": ("cilia",),
    "ClusterRoleBinding": ("cilia",),
    "Role": ("cilia-config",),
    "RoleBinding": ("cilia-config",),
}
LIFETIME: Final = "24h"


def agents_token(api: ApiServer, *, pod_network: bool = False) -> str:
    """Make the account with its rights; a token of it, as a pod would get one (TokenRequest)."""
    forms = [
        form
        for form in _chart(pod_network)
        if form["metadata"]["name"] in RIGHTS.get(form["kind"], ())
    ]
    assert {form["kind"] for form in forms} == set(RIGHTS), "the chart names them otherwise"
    api.apply(yaml.safe_dump_all(forms))
    create = ("create", "token", ACCOUNT, f"--namespace={NAMESPACE}", f"--duration={LIFETIME}")
    return api.kubectl(*create).strip()


def _chart(pod_network: bool) -> list[dict[str, Any]]:
    if not pod_network:
        return manifests(Values(api_server="", namespace=NAMESPACE))
    text = template("--set=k8sServiceHost=unused", "--set=podNetwork.enabled=true")
    return [form for form in yaml.safe_load_all(text) if form]

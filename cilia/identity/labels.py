# SPDX-License-Identifier: Apache-2.0
"""The labels of a workload that make its identity.

They are the pod's own, its namespace's, and what Kubernetes knows of it: namespace, service
account, cluster. Then the field's default filter leaves out what changes with every instance.
Labels whose keys begin with one of our prefixes come from Namespace and ServiceAccount only: a
pod's own ones of such a name are left out, because whoever makes pods would choose an identity by
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["CLUSTER_DEFAULT", "container_labels", "is_reserved_key", "pod_labels"]

#: Name of a cluster that is alone.
CLUSTER_DEFAULT: Final = "default"

NAMESPACE: Final = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS: Final = "io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT: Final = "io.cilium.k8s.policy.serviceaccount"
CLUSTER: Final = "io.cilium.k8s.policy.cluster"

#: Keys that only we write.
OWN_PREFIXES: Final = (NAMESPACE, "io.cilium.k8s.", "reserved")

#: Keys that begin with one of these stay, however they go on.
INCLUDED: Final = (
    NAMESPACE,
    "io.cilium.k8s.namespace.labels",
    "app.kubernetes.io",
    CLUSTER,
    SERVICE_ACCOUNT,
)

#: Keys that begin with one of these are left out, unless a longer one above has them.
EXCLUDED: Final = (
    "io.kubernetes",
    "kubernetes.io",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/controller-uid",
    "k8s.io",
    "pod-template-generation",
    "pod-template-hash",
    "controller-revision-hash",
    "controller-uid",
    "annotation",
    "etcd_node",
    "topology.kubernetes.io",
)

#: Left out wherever in the key it stands.
EXCLUDED_ANYWHERE: Final = "beta.kubernetes.io"


def pod_labels(
    own: Mapping[str, str],
    namespace: str,
    namespace_labels: Mapping[str, str],
    service_account: str,
    cluster: str = CLUSTER_DEFAULT,
) -> tuple[str, ...]:
    """Return what makes the identity of a pod, as `SOURCE:KEY=VALUE`, sorted."""
    labels = {key: value for key, value in own.items() if not is_reserved_key(key)}
    labels |= {NAMESPACE_LABELS + key: value for key, value in namespace_labels.items()}
    labels[NAMESPACE] = namespace
    labels[SERVICE_ACCOUNT] = service_account or "default"
    labels[CLUSTER] = cluster
    return tuple(_texts("k8s", labels))


def container_labels(own: Mapping[str, str], cluster: str = CLUSTER_DEFAULT) -> tuple[str, ...]:
    """Return what makes the identity of a container outside Kubernetes."""
    labels = {key: value for key, value in own.items() if not is_reserved_key(key)}
    labels[CLUSTER] = cluster
    return tuple(_texts("cni", labels))


def is_reserved_key(key: str) -> bool:
    """Return True for keys that no workload may choose."""
    return key.startswith(OWN_PREFIXES)


def _texts(source: str, labels: Mapping[str, str]) -> Iterator[str]:
    for key, value in sorted(labels.items()):
        if _makes_identity(key):
            yield f"{source}:{key}={value}" if value else f"{source}:{key}"


def _makes_identity(key: str) -> bool:
    excluded = _longest(key, EXCLUDED)
    if EXCLUDED_ANYWHERE in key:
        excluded = max(excluded, key.index(EXCLUDED_ANYWHERE) + len(EXCLUDED_ANYWHERE))
    return not excluded or _longest(key, INCLUDED) > excluded


def _longest(key: str, prefixes: tuple[str, ...]) -> int:
    return max((len(prefix) for prefix in prefixes if key.startswith(prefix)), default=0)

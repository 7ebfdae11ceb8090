# SPDX-License-Identifier: Apache-2.0
"""CiliumIdentity v2: the number that a cluster has for a set of labels; the number is the name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from cilia.k8s.crds.custom import CustomObject

__all__ = ["HEARTBEAT", "CiliumIdentity", "identity_form"]

#: Annotation of an identity that nobody seemed to use for a while: it is deleted if nobody takes
#: the annotation away.
HEARTBEAT: Final = "io.cilium.heartbeat"

#: The one label that such an object has itself, for `kubectl get -l`.
NAMESPACE: Final = "io.kubernetes.pod.namespace"


class CiliumIdentity(CustomObject):
    API_VERSION: ClassVar[str] = "cilium.io/v2"
    KIND: ClassVar[str] = "CiliumIdentity"
    RESOURCE: ClassVar[str] = "ciliumidentities"
    NAMESPACED: ClassVar[bool] = False

    security_labels: Annotated[
        dict[str, str],
        Field(
            alias="security-labels",
            description="The set of labels: values by SOURCE:KEY, e.g. k8s:app.",
        ),
    ]

    @property
    def labels(self) -> tuple[str, ...]:
        """The set as `SOURCE:KEY=VALUE`, sorted."""
        pairs = sorted(self.security_labels.items())
        return tuple(f"{key}={value}" if value else key for key, value in pairs)

    @property
    def is_marked(self) -> bool:
        """True if it is to be deleted."""
        return HEARTBEAT in (self.metadata.annotations or {})


def identity_form(number: int, labels: Iterable[str]) -> dict[str, Any]:
    """Return the object of a set of labels, as it is created."""
    pairs = {key: value for key, _, value in (label.partition("=") for label in labels)}
    namespace = pairs.get(f"k8s:{NAMESPACE}", "")
    return {
        "apiVersion": CiliumIdentity.API_VERSION,
        "kind": CiliumIdentity.KIND,
        "metadata": {
            "name": str(number),
            **({"labels": {NAMESPACE: namespace}} if namespace else {}),
        },
        "security-labels": pairs,
    }

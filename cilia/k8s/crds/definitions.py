# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinitions of the kinds that this project reads, one line of facts a kind.

Group, names, short names, versions and scope are the field's. Each definition carries the number of
its schema in a label: whoever registers it never puts a lower number in place of a higher one, and
leaves alone what carries none, since somebody else made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cilia.k8s.crds.endpoints import CiliumEndpoint
from cilia.k8s.crds.identities import CiliumIdentity
from cilia.k8s.crds.node_configs import CiliumNodeConfig
from cilia.k8s.crds.redirect_policies import CiliumLocalRedirectPolicy
from cilia.k8s.crds.schema import openapi_schema
from cilia.k8s.objects import K8sObject

__all__ = [
    "DEFINITIONS",
    "POD_NETWORK_DEFINITIONS",
    "SCHEMA_LABEL",
    "SCHEMA_NUMBER",
    "Definition",
]

SCHEMA_LABEL: Final = "cilia.io/crd-schema"
# To be raised with each change of any definition; a test holds the definitions against it.
SCHEMA_NUMBER: Final = 2


@dataclass(frozen=True)
class Definition:
    """One kind: the model gives names and version, the rest is what the API server needs."""

    kind: type[K8sObject]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ("cilium",)
    #: Columns of `kubectl get` before the age: heading, path and type.
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return self.kind.API_VERSION.split("/")[0]

    @property
    def version(self) -> str:
        return self.kind.API_VERSION.split("/")[1]

    @property
    def name(self) -> str:
        return f"{self.kind.RESOURCE}.{self.group}"

    def manifest(self) -> dict[str, Any]:
        """The CustomResourceDefinition, as one would write it."""
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name, "labels": {SCHEMA_LABEL: str(SCHEMA_NUMBER)}},
            "spec": {
                "group": self.group,
                "names": self._names(),
                "scope": "Namespaced" if self.kind.NAMESPACED else "Cluster",
                "versions": [self._version()],
            },
        }

    def _names(self) -> dict[str, Any]:
        names: dict[str, Any] = {
            "kind": self.kind.KIND,
            "listKind": f"{self.kind.KIND}List",
            "plural": self.kind.RESOURCE,
            "singular": self.kind.KIND.lower(),
            "categories": list(self.categories),
        }
        return names | ({"shortNames": list(self.short_names)} if self.short_names else {})

    def _version(self) -> dict[str, Any]:
        return {
            "name": self.version,
            "served": True,
            "storage": True,
            "additionalPrinterColumns": [
                *(
                    {"name": name, "type": type_, "jsonPath": path}
                    for name, (path, type_) in self.columns.items()
                ),
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ],
            "schema": {"openAPIV3Schema": self._schema()},
        }

    def _schema(self) -> dict[str, Any]:
        """The model's fields; what all kinds have is the API server's."""
        model = openapi_schema(self.kind)
        fields = {name: f for name, f in model["properties"].items() if name != "metadata"}
        return {
            "type": "object",
            "required": [name for name in model["required"] if name in fields],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"type": "object"},
                **fields,
            },
        }


DEFINITIONS: Final = (
    Definition(
        CiliumLocalRedirectPolicy,
        short_names=("ciliumlrp",),
        categories=("cilium", "ciliumpolicy"),
    ),
    Definition(CiliumNodeConfig),
)

#: Of a cluster whose pods have their network from us, beside the others.
POD_NETWORK_DEFINITIONS: Final = (
    Definition(
        CiliumEndpoint,
        short_names=("ciliumep", "cep"),
        columns={
            "Security Identity": (".status.identity.id", "integer"),
            "Endpoint State": (".status.state", "string"),
            "IPv4": (".status.networking.addressing[0].ipv4", "string"),
            "IPv6": (".status.networking.addressing[0].ipv6", "string"),
        },
    ),
    Definition(
        CiliumIdentity,
        short_names=("ciliumid",),
        columns={"Namespace": (r".metadata.labels.io\.kubernetes\.pod\.namespace", "string")},
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinitions of the kinds that this project reads, one line of facts a kind.

Group, names, short names, versions and scope are the field's. Each definition carries the number of
its schema in a label: whoever registers it never puts a lower number in place of a higher one, and
leaves alone what carries none, since somebody else made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cilia.k8s.crds.node_configs import CiliumNodeConfig, NodeConfigSpec
from cilia.k8s.crds.redirect_policies import CiliumLocalRedirectPolicy, RedirectPolicySpec
from cilia.k8s.crds.schema import openapi_schema
from cilia.k8s.objects import K8sObject, Model

__all__ = ["DEFINITIONS", "SCHEMA_LABEL", "SCHEMA_NUMBER", "Definition"]

SCHEMA_LABEL: Final = "cilia.io/crd-schema"
# To be raised with each change of any definition; a test holds the definitions against it.
SCHEMA_NUMBER: Final = 1


@dataclass(frozen=True)
class Definition:
    """One kind: the model gives names and version, the rest is what the API server needs."""

    kind: type[K8sObject]
    spec: type[Model]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ("cilium",)

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
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
            ],
            "schema": {
                "openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": openapi_schema(self.spec),
                    },
                }
            },
        }


DEFINITIONS: Final = (
    Definition(
        CiliumLocalRedirectPolicy,
        RedirectPolicySpec,
        short_names=("ciliumlrp",),
        categories=("cilium", "ciliumpolicy"),
    ),
    Definition(CiliumNodeConfig, NodeConfigSpec),
)

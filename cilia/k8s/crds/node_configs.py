# SPDX-License-Identifier: Apache-2.0
"""CiliumNodeConfig v2: options for the nodes with certain labels, over those of the ConfigMap."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cilia.k8s.crds.custom import CustomModel, CustomObject
from cilia.k8s.crds.label_selectors import LabelSelector

__all__ = ["CiliumNodeConfig", "NodeConfigSpec"]


class NodeConfigSpec(CustomModel):
    defaults: Annotated[
        dict[str, str], Field(description="Options by name, as in the ConfigMap of options.")
    ]
    node_selector: Annotated[
        LabelSelector, Field(description="Nodes that get them; empty: all nodes.")
    ]


class CiliumNodeConfig(CustomObject):
    API_VERSION: ClassVar[str] = "cilium.io/v2"
    KIND: ClassVar[str] = "CiliumNodeConfig"
    RESOURCE: ClassVar[str] = "ciliumnodeconfigs"

    spec: NodeConfigSpec

# SPDX-License-Identifier: Apache-2.0
"""CiliumEndpoint: the identity and the addresses of a pod, as the agent of its node says them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field

from cilia.k8s.crds.custom import CustomModel, CustomObject
from cilia.k8s.objects import Metadata, Model, OptionalAddress, OptionalPort

__all__ = ["CiliumEndpoint"]

#: Kind of the owner.
POD: Final = "Pod"


class OwnerReference(Model):
    kind: str = ""
    name: str = ""
    uid: str = ""


class OwnedMetadata(Metadata):
    owner_references: list[OwnerReference] | None = None


class KebabModel(CustomModel):
    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))


class EndpointIdentity(KebabModel):
    id: Annotated[int, Field(description="Number of the CiliumIdentity.")]
    labels: Annotated[
        list[str] | None, Field(description="The labels of the identity: SOURCE:KEY=VALUE, sorted.")
    ] = None


class AddressPair(KebabModel):
    ipv4: OptionalAddress = ""
    ipv6: OptionalAddress = ""


class EndpointNetworking(KebabModel):
    addressing: Annotated[
        list[AddressPair], Field(description="The addresses of each interface of the pod.")
    ]
    node: Annotated[
        OptionalAddress, Field(description="Address of the node that the pod is on.")
    ] = ""


class ExternalIdentifiers(KebabModel):
    cni_attachment_id: str = ""
    container_id: str = ""
    k8s_namespace: str = ""
    k8s_pod_name: str = ""
    pod_name: str = ""


class EndpointNamedPort(KebabModel):
    name: str = ""
    port: OptionalPort = 0
    protocol: str = ""


class EndpointStatus(KebabModel):
    id: Annotated[int, Field(description="Number of the endpoint on its node.")] = 0
    identity: EndpointIdentity | None = None
    networking: EndpointNetworking | None = None
    external_identifiers: ExternalIdentifiers | None = None
    named_ports: list[EndpointNamedPort] | None = None
    state: Annotated[str, Field(description="ready, disconnected, …")] = ""


class CiliumEndpoint(CustomObject):
    API_VERSION: ClassVar[str] = "cilium.io/v2"
    KIND: ClassVar[str] = "CiliumEndpoint"
    RESOURCE: ClassVar[str] = "ciliumendpoints"

    metadata: OwnedMetadata
    status: EndpointStatus | None = None

    @property
    def pod_uid(self) -> str:
        """The uid of the pod that owns it; empty: no pod does."""
        owners = self.metadata.owner_references or ()
        return next((owner.uid for owner in owners if owner.kind == POD), "")

    def content(self) -> int:
        """Return a hash of all that its writer says, of this process alone."""
        said = self.status or EndpointStatus()
        identity, networking = said.identity, said.networking
        identifiers = said.external_identifiers or ExternalIdentifiers()
        return hash(
            (
                *(self.pod_uid, said.id, said.state),
                None if identity is None else (identity.id, tuple(identity.labels or ())),
                None if networking is None else networking.node,
                *((pair.ipv4, pair.ipv6) for pair in (networking.addressing if networking else ())),
                identifiers.cni_attachment_id,
                identifiers.container_id,
                *((port.name, port.port, port.protocol) for port in said.named_ports or ()),
            )
        )

# SPDX-License-Identifier: Apache-2.0
"""CiliumLocalRedirectPolicy v2: traffic for an address or Service goes to pods of the own node."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cilia.k8s.crds.custom import CustomModel, CustomObject
from cilia.k8s.crds.label_selectors import LabelSelector
from cilia.k8s.objects import Address, Name

__all__ = ["CiliumLocalRedirectPolicy", "RedirectPolicySpec"]

# A port is a text in these policies: 1 to 65535 without leading zeros.
PORT = r"^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$"
# An IANA service name: at most 15 lower or upper case letters, digits and dashes, one letter.
PORT_NAME = r"^[a-zA-Z0-9-]*[a-zA-Z][a-zA-Z0-9-]*$"
NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
# What may stand in an address; whether it is one is said by the agent, with the field's path.
ADDRESS = r"^[0-9a-fA-F:.]+$"
# For the API server alone: what redirects now is not to become something else under connections.
IMMUTABLE: dict[str, Any] = {
    "x-kubernetes-validations": [
        {"message": "cannot be changed, make a new policy", "rule": "self == oldSelf"}
    ]
}
ONE_MATCHER: dict[str, Any] = {
    "oneOf": [{"required": ["addressMatcher"]}, {"required": ["serviceMatcher"]}]
}


class PortInfo(CustomModel):
    port: Annotated[str, Field(pattern=PORT)]
    protocol: Literal["TCP", "UDP"]
    name: Annotated[str, Field(pattern=PORT_NAME, max_length=15)] | None = None


class AddressMatcher(CustomModel):
    """One address; not one of a ClusterIP Service."""

    ip: Annotated[Address, Field(json_schema_extra={"pattern": ADDRESS})]
    to_ports: list[PortInfo]


class ServiceMatcher(CustomModel):
    """A Service of type ClusterIP; without ports, all of its ports."""

    service_name: Annotated[Name, Field(json_schema_extra={"pattern": NAME})]
    namespace: Annotated[Name, Field(json_schema_extra={"pattern": NAME})]
    to_ports: list[PortInfo] | None = None


class RedirectFrontend(CustomModel):
    """Exactly one of the two."""

    address_matcher: AddressMatcher | None = None
    service_matcher: ServiceMatcher | None = None

    @model_validator(mode="after")
    def _one_matcher(self) -> RedirectFrontend:
        if (self.address_matcher is None) is (self.service_matcher is None):
            raise ValueError("needs either addressMatcher or serviceMatcher")
        return self


class RedirectBackend(CustomModel):
    """Ready pods of the own node, in the policy's namespace."""

    local_endpoint_selector: LabelSelector
    to_ports: list[PortInfo]


class RedirectPolicySpec(CustomModel):
    redirect_frontend: Annotated[
        RedirectFrontend,
        Field(
            description="Whose traffic is redirected.", json_schema_extra=IMMUTABLE | ONE_MATCHER
        ),
    ]
    redirect_backend: Annotated[
        RedirectBackend, Field(description="Where it goes.", json_schema_extra=IMMUTABLE)
    ]
    skip_redirect_from_backend: Annotated[
        bool,
        Field(
            description="What the pods themselves send there is not redirected.",
            json_schema_extra=IMMUTABLE,
        ),
    ] = False
    description: str = ""


class CiliumLocalRedirectPolicy(CustomObject):
    API_VERSION: ClassVar[str] = "cilium.io/v2"
    KIND: ClassVar[str] = "CiliumLocalRedirectPolicy"
    RESOURCE: ClassVar[str] = "ciliumlocalredirectpolicies"

    spec: RedirectPolicySpec

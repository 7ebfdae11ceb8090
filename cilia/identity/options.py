# SPDX-License-Identifier: Apache-2.0
"""The agent's options on security identities."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator

from cilia.program.instance import InstanceOptions

__all__ = ["IdentityOptions"]

CRD: Final = "crd"

#: Modes of the field whose behaviour is not built.
NOT_BUILT: Final = ("kvstore", "doublewrite-readkvstore", "doublewrite-readcrd")


class IdentityOptions(InstanceOptions):
    """How nodes agree on the numbers of sets of labels."""

    identity_allocation_mode: Annotated[
        str,
        Field(
            description="How nodes agree on the numbers of identities: crd, by CiliumIdentity"
            " objects in the API server or in --k8s-objects-dir."
        ),
    ] = CRD

    @field_validator("identity_allocation_mode")
    @classmethod
    def _allocation_mode(cls, value: str) -> str:
        if value in NOT_BUILT:
            raise ValueError(f"{value} is not built: say {CRD}, or leave it out")
        if value != CRD:
            raise ValueError(f"{value!r} is no mode: say {CRD}")
        return value

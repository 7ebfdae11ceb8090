# SPDX-License-Identifier: Apache-2.0
"""The network configuration that a runtime gives a plugin with each request.

It is one entry of a `.conflist`, with what the runtime adds: name and version of the list,
`runtimeConfig`, `prevResult`, for GC the attachments that are valid. Fields that are not known here
are left alone, as the specification has it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from cilia.endpoints.cni.errors import CNIError, Code
from cilia.endpoints.cni.results import VERSIONS
from statedb.shown.text import shortened, visible

__all__ = ["ContainerId", "IPAMConfig", "InterfaceName", "NetworkConfig", "NetworkName", "decoded"]

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
#: Lengths are such that the three together fit into the name of a file.
NetworkName = Annotated[str, Field(pattern=_NAME, max_length=100)]
ContainerId = Annotated[str, Field(pattern=_NAME, max_length=128)]
#: Not `.` and not `..`; the kernel allows more, container runtimes do not.
InterfaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=15)]
#: Largest MTU of the kernel's devices.
_MTU: Final = 65535
_MOST_SHOWN: Final = 60


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class IPAMConfig(_Form):
    """Who gives addresses; the plugin of another type is run with the configuration as it came."""

    # A name in the directories of CNI_PATH, never a path.
    type: Annotated[str, Field(pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.-]*)?$")] = ""


class ValidAttachment(_Form):
    """A container's interface that exists as far as the runtime knows."""

    container_id: Annotated[ContainerId, Field(alias="containerID")]
    ifname: InterfaceName


class NetworkConfig(_Form):
    """A network configuration; `null` stands for a field that is not there."""

    cni_version: Annotated[str, Field(alias="cniVersion")]
    name: NetworkName
    type: Annotated[str, Field(min_length=1)]
    args: dict[str, Any] | None = None
    ipam: IPAMConfig | None = None
    mtu: Annotated[int, Field(ge=0, le=_MTU)] | None = None
    runtime_config: Annotated[dict[str, Any] | None, Field(alias="runtimeConfig")] = None
    previous: Annotated[Any, Field(alias="prevResult")] = None
    # The second name is that of libcni 1.2.
    valid_attachments: Annotated[
        list[ValidAttachment] | None,
        Field(
            validation_alias=AliasChoices("cni.dev/valid-attachments", "cni.dev/attachments"),
        ),
    ] = None
    chaining_mode: Annotated[str | None, Field(alias="chaining-mode")] = None
    enable_debug: Annotated[bool | None, Field(alias="enable-debug")] = None
    enable_route_mtu: Annotated[bool | None, Field(alias="enable-route-mtu")] = None
    log_file: Annotated[str | None, Field(alias="log-file")] = None
    log_format: Annotated[str | None, Field(alias="log-format")] = None
    socket_path: Annotated[str | None, Field(alias="socket-path")] = None


def decoded(text: bytes) -> NetworkConfig:
    """Return a configuration of a supported version.

    Raises:
        CNIError: it is no JSON object, of another version, or a field is wrong.
    """
    try:
        form = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CNIError(Code.UNDECODABLE, f"the network configuration is no JSON: {error}") from None
    if not isinstance(form, dict):
        raise CNIError(Code.UNDECODABLE, "the network configuration is no JSON object")
    _check_version(form.get("cniVersion"))
    try:
        return NetworkConfig.model_validate(form)
    except ValidationError as error:
        raise CNIError(Code.INVALID_CONFIG, _sentence(error)) from None


def _check_version(version: object) -> None:
    if not isinstance(version, str | None):
        raise CNIError(Code.UNDECODABLE, f"cniVersion is no text but {_shown(version)}")
    if version not in VERSIONS:
        has = "is missing" if version is None else f"is {_shown(version)}"
        raise CNIError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion of the network configuration {has}: it must be one of"
            f" {', '.join(VERSIONS)}",
        )


def _sentence(error: ValidationError) -> str:
    """Name each field that is wrong, and say why."""
    found = error.errors(include_url=False, include_context=False)
    return "network configuration: " + shortened(
        ", ".join(f"{_path(item['loc'])}: {_reason(item)}" for item in found)
    )


def _path(location: tuple[int | str, ...]) -> str:
    return visible(".".join(str(part) for part in location))


def _reason(item: Any) -> str:
    if item["type"] == "missing":
        return "is missing"
    return f"{item['msg'].removeprefix('Input ')}, not {_shown(item['input'])}"


def _shown(value: object) -> str:
    return shortened(visible(repr(value)), _MOST_SHOWN)

# SPDX-License-Identifier: Apache-2.0
"""Requests of container runtimes: parsed and validated, with the code that the specification has
for what is wrong.
"""

from __future__ import annotations

import fcntl
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec
from pydantic import TypeAdapter, ValidationError

from cilia.endpoints.cni.errors import CNIError, Code
from cilia.endpoints.cni.network_config import (
    ContainerId,
    InterfaceName,
    NetworkConfig,
    decoded,
)
from cilia.endpoints.cni.results import Result, parsed
from statedb.shown.text import shortened, visible

__all__ = ["Attachment", "Command", "Request", "parse"]

NS_GET_NSTYPE: Final = 0xB703  # ioctl_nsfs(2)
CLONE_NEWNET: Final = 0x40000000


class Command(StrEnum):
    """The verbs; VERSION is answered by `cilia-cni` alone."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"


#: Commands that are of one container's interface.
_ATTACHED: Final = frozenset({Command.ADD, Command.DEL, Command.CHECK})
#: Variables that must be there.
_REQUIRED: Final = {
    Command.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),
    Command.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.STATUS: (),
    Command.GC: ("CNI_PATH",),
}
#: Versions of the specification that do not have a verb.
_WITHOUT: Final = {
    Command.CHECK: ("0.3.1",),
    Command.STATUS: ("0.3.1", "0.4.0", "1.0.0"),
    Command.GC: ("0.3.1", "0.4.0", "1.0.0"),
}
_NAMES: Final = {
    "CNI_CONTAINERID": TypeAdapter(ContainerId),
    "CNI_IFNAME": TypeAdapter(InterfaceName),
}


class Attachment(NamedTuple):
    """The key of what an ADD made: an interface of a container in a network."""

    network: str
    container_id: str
    ifname: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request; texts are empty where its command has none."""

    command: Command
    container_id: str
    ifname: str
    #: Path of the network namespace, for the result and for other plugins; nobody opens it here.
    netns: str
    #: The network namespace, opened by the runtime's side. Belongs to the server.
    netns_fd: int | None
    #: CNI_ARGS.
    args: dict[str, str]
    #: All variables CNI_*, for plugins that this one runs.
    environment: dict[str, str]
    config: NetworkConfig
    #: The configuration as it came, for plugins that this one runs.
    raw_config: bytes
    prev_result: Result | None

    @property
    def network(self) -> str:
        return self.config.name

    @property
    def is_attached(self) -> bool:
        """True for a command that is of one container's interface."""
        return self.command in _ATTACHED

    @property
    def attachment(self) -> Attachment:
        """The key; of GC and STATUS it has a network alone."""
        return Attachment(self.network, self.container_id, self.ifname)

    @property
    def valid_attachments(self) -> frozenset[Attachment]:
        """Of GC: what the runtime knows to exist in the network."""
        valid = self.config.valid_attachments or ()
        return frozenset(Attachment(self.network, a.container_id, a.ifname) for a in valid)


def parse(environment: bytes, config: bytes, netns_fd: int | None = None) -> Request:
    """Return a request from the variables `CNI_X=...\\0`, the configuration and the descriptor.

    Raises:
        CNIError: something is missing or wrong; names the variable or the field.
    """
    variables = _variables(environment)
    command = _command(variables)
    _check_names(command, variables)
    network = decoded(config)
    _check_verb(command, network)
    attached = variables if command in _ATTACHED else {}
    return Request(
        command=command,
        container_id=attached.get("CNI_CONTAINERID", ""),
        ifname=attached.get("CNI_IFNAME", ""),
        netns=attached.get("CNI_NETNS", ""),
        netns_fd=_network_namespace(command, netns_fd),
        args=_arguments(variables.get("CNI_ARGS", "")),
        environment=variables,
        config=network,
        raw_config=config,
        prev_result=_previous(command, network),
    )


def _variables(environment: bytes) -> dict[str, str]:
    variables: dict[str, str] = {}
    for entry in environment.removesuffix(b"\0").split(b"\0") if environment else ():
        name, _, value = entry.partition(b"=")
        shown = visible(shortened(name.decode(errors="replace"), 60))
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise _wrong(f"{shown} is no UTF-8") from None
        if shown in variables:
            raise _wrong(f"{shown} is there twice")
        variables[shown] = text
    return variables


def _wrong(what: str) -> CNIError:
    return CNIError(Code.INVALID_ENVIRONMENT, what)


def _command(variables: dict[str, str]) -> Command:
    text = variables.get("CNI_COMMAND", "")
    try:
        return Command(text)
    except ValueError:
        raise _wrong(
            f"CNI_COMMAND is {shortened(visible(repr(text)), 60)}: it must be one of"
            f" {', '.join(Command)}"
        ) from None


def _check_names(command: Command, variables: dict[str, str]) -> None:
    missing = [name for name in _REQUIRED[command] if not variables.get(name)]
    if missing:
        raise _wrong(f"{command} needs {' and '.join(missing)}")
    for name, form in _NAMES.items():
        if name not in _REQUIRED[command]:
            continue
        try:
            form.validate_python(variables[name])
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            shown = shortened(visible(repr(variables[name])), 60)
            raise _wrong(f"{name} is {shown}: {reason}") from None


def _check_verb(command: Command, network: NetworkConfig) -> None:
    if network.cni_version in _WITHOUT.get(command, ()):
        raise CNIError(
            Code.INCOMPATIBLE_VERSION,
            f"{command} is no command of cniVersion {network.cni_version}: set a newer one in the"
            " configuration list",
        )
    # An empty list is one; none at all must not be taken for it, and everything be removed.
    if command is Command.GC and network.valid_attachments is None:
        raise CNIError(
            Code.INVALID_CONFIG, "GC needs cni.dev/valid-attachments, a list, which may be empty"
        )


def _arguments(text: str) -> dict[str, str]:
    """CNI_ARGS: `K=V;K=V`."""
    arguments: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        shown = shortened(visible(repr(pair)), 60)
        if not equals or not key:
            raise _wrong(f"CNI_ARGS: {shown} is no KEY=VALUE")
        if key in arguments:
            raise _wrong(f"CNI_ARGS: {shown} is a key that is there twice")
        arguments[key] = value
    return arguments


def _network_namespace(command: Command, netns_fd: int | None) -> int | None:
    """Return the descriptor if it is of a network namespace, which DEL can do without."""
    if netns_fd is not None and _is_network_namespace(netns_fd):
        return netns_fd
    if command in (Command.ADD, Command.CHECK):
        raise _wrong("CNI_NETNS is no network namespace")
    return None


def _is_network_namespace(descriptor: int) -> bool:
    try:
        return fcntl.ioctl(descriptor, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def _previous(command: Command, network: NetworkConfig) -> Result | None:
    """Return the result that came with the request. One that cannot be read keeps no DEL away."""
    form: Any = network.previous
    if form is None and command is Command.CHECK:
        raise CNIError(Code.INVALID_CONFIG, "CHECK needs prevResult, the result of the ADD")
    if form is None:
        return None
    try:
        return parsed(form)
    except ValueError as error:
        if command is Command.DEL:
            return None
        text = f"network configuration: prevResult: {shortened(visible(str(error)))}"
        raise CNIError(Code.INVALID_CONFIG, text) from None

# SPDX-License-Identifier: Apache-2.0
"""`cilia build-config`: the options of this node from the API server, as a directory for the agent.

The ConfigMap of options first, then over it each CiliumNodeConfig of the namespace whose selector
matches the labels of this node, in the order of their names. Runs before the agent, in a container
of its own, so that the agent has one source of options, which is there also while the API server is
away: what a former run wrote is used then. `DIR/current` is the directory for the agent.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import anyio
import click
from pydantic import Field, ValidationError

from cilia.agent.config import AgentConfig
from cilia.cluster.access_options import KubernetesOptions, open_client
from cilia.k8s.client import Client
from cilia.k8s.crds.custom import UNKNOWN
from cilia.k8s.crds.node_configs import CiliumNodeConfig
from cilia.k8s.errors import ApiError, StatusError
from cilia.program.errors import ProgramError
from cilia.program.foreground import run_until_signalled
from cilia.program.options import from_process, options_of, resolved

__all__ = ["build_config", "options_of_node", "write_directory"]

NOT_FOUND, TOO_MANY = 404, 429
RETRY_S = 0.5
LATEST = "current"


class BuildConfigOptions(KubernetesOptions):
    dest: Annotated[Path, Field(description="Directory to write; --config-dir is its `current`.")]
    k8s_namespace: Annotated[
        str, Field(min_length=1, description="Namespace of the ConfigMap and the node configs.")
    ] = "kube-system"
    config_map: Annotated[
        str, Field(min_length=1, description="Name of the ConfigMap of options.")
    ] = "cilia-config"
    node_name: Annotated[
        str, Field(min_length=1, description="Name of this node's Node object.")
    ] = Field(default_factory=socket.gethostname)
    timeout_s: Annotated[int, Field(ge=1, description="How long the API server is tried.")] = 60


@click.command(name="build-config")
@options_of(BuildConfigOptions)
def build_config(**given: Any) -> None:
    """Write the options of this node as a directory, from the ConfigMap and the node configs.

    If the API server does not answer in time, what a former run wrote stays and is used.

    \b
    Examples:
      cilia build-config --dest /run/cilia/config --k8s-api-server https://10.0.0.1:6443
    """
    run_until_signalled(_run, from_process(BuildConfigOptions, given))


async def _run(config: BuildConfigOptions) -> int:
    client = open_client(config)
    try:
        with anyio.fail_after(config.timeout_s):
            options = await _answered(client, config)
    except TimeoutError:
        if not (config.dest / LATEST).exists():
            raise ProgramError(
                f"the API server did not answer within {config.timeout_s} s, and there is no"
                " former configuration"
            ) from None
        click.echo(f"the API server did not answer: {config.dest / LATEST} stays as it is")
        return 0
    finally:
        await client.close()
    write_directory(config.dest, options)
    click.echo(f"wrote {len(options)} options to {config.dest / LATEST}")
    return 0


async def _answered(client: Client, config: BuildConfigOptions) -> dict[str, str]:
    """Asks until there is an answer.

    Raises:
        ProgramError: it is one that another question does not change.
    """
    while True:
        try:
            return await _read(client, config)
        except StatusError as error:
            if error.code < 500 and error.code != TOO_MANY:
                raise ProgramError(str(error)) from None
            click.echo(f"the API server says {error}", err=True)
        except ApiError as error:
            click.echo(f"the API server: {error}", err=True)
        await anyio.sleep(RETRY_S)


async def _read(client: Client, config: BuildConfigOptions) -> dict[str, str]:
    core = "/api/v1"
    config_map = f"{core}/namespaces/{config.k8s_namespace}/configmaps/{config.config_map}"
    base = json.loads(await client.fetch(config_map)).get("data") or {}
    configs = await _node_configs(client, config.k8s_namespace)
    for text in unknown_fields(configs):
        click.echo(text, err=True)
    if not configs:
        return dict(base)
    # A list, as agents read nodes anyway: one right less.
    one = {"fieldSelector": f"metadata.name={config.node_name}"}
    nodes = json.loads(await client.fetch(f"{core}/nodes", one))["items"]
    if not nodes:
        raise ProgramError(f"there is no Node {config.node_name}: name this one with --node-name")
    return options_of_node(base, configs, nodes[0]["metadata"].get("labels") or {})


async def _node_configs(client: Client, namespace: str) -> list[CiliumNodeConfig]:
    path = (
        f"/apis/{CiliumNodeConfig.API_VERSION}/namespaces/{namespace}/{CiliumNodeConfig.RESOURCE}"
    )
    try:
        items = json.loads(await client.fetch(path))["items"]
    except StatusError as error:
        if error.code == NOT_FOUND:  # the kind is not registered, so there are none
            return []
        raise
    try:
        return [CiliumNodeConfig.model_validate(item) for item in items]
    except ValidationError as error:
        raise ProgramError(f"CiliumNodeConfig: {error}") from None


def unknown_fields(configs: Iterable[CiliumNodeConfig]) -> Iterator[str]:
    """A line for each field that means nothing."""
    for config in configs:
        meta = config.metadata
        for path in config.unknown_fields():
            yield f"{config.KIND} {meta.namespace}/{meta.name}: {path}: {UNKNOWN}"


def options_of_node(
    base: Mapping[str, str], configs: Iterable[CiliumNodeConfig], labels: Mapping[str, str]
) -> dict[str, str]:
    """The base, and over it what each config says that chooses a node with these labels."""
    options = dict(base)
    for config in sorted(configs, key=lambda config: config.metadata.name):
        if config.spec.node_selector.parsed().matches(labels):
            options |= config.spec.defaults
    return options


def write_directory(dest: Path, options: Mapping[str, str]) -> None:
    """A file for each option, in a directory that `current` points to: all at once or not at all.

    Raises:
        ProgramError: the agent would refuse them; what was there stays.
    """
    for name in options:
        if "/" in name or name.startswith("."):  # the names of a node config are any texts
            raise ProgramError(f"{name!r} is no option")
    dest.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix="options-", dir=dest))
    try:
        for name, value in options.items():
            (new / name).write_text(value)
        resolved(AgentConfig, {"config_dir": new}, {})
    except click.UsageError as error:
        shutil.rmtree(new)
        raise ProgramError(error.message.replace(f"{new}/", "")) from None
    link = dest / ".current"
    link.unlink(missing_ok=True)
    link.symlink_to(new.name)
    link.rename(dest / LATEST)
    for old in dest.glob("options-*"):
        if old != new:
            shutil.rmtree(old)

# SPDX-License-Identifier: Apache-2.0
"""Files made from others and checked in: `make rendered` writes them, tests compare them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cilia.agent.config import AgentConfig
from cilia.operator.config import OperatorConfig
from cilia.program.options import ProgramConfig, option_name, variable_name
from tests.kube.assets import asset

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "install" / "helm" / "cilia"
# The place of the API server in the manifests, for `cilia install` or a person to fill in.
HOST = "api-server.invalid"
KUBE_VERSION = "1.34"

MANIFESTS_HEAD = f"""\
# SPDX-License-Identifier: Apache-2.0
# The chart of install/helm/cilia with its defaults, written by `make rendered`. Two things are to
# be put in before `kubectl apply --server-side -f`: the address of the API server as nodes reach
# it in place of {HOST}, and images. `cilia install` does both.
"""
OPTIONS_HEAD = """\
# Configuration

Written by `make rendered` from the models that validate the options; not to be edited.

An option is set by a flag, an environment variable, or a file of the directory `--config-dir`,
which is what a ConfigMap looks like when it is mounted; the first of these that has it counts. The
file has the name of the option without dashes in front, the variable is `CILIA_` and the name in
capitals. Options that Cilium has keep its names, so that a ConfigMap can move; its variables
(`CILIUM_...`) are not read. An unknown flag or file, a variable that looks like a misspelt one, and
a value that is wrong end the start; all of them are named at once, with what was probably meant. An
empty file or variable means: not set.

```console
$ cilia config                       # of the running agent: value and origin of each option
$ cilia config --changed -o yaml     # only what somebody set
$ cilia config --here                # what an agent would get that starts here and now
```

On a cluster the options of the agent are the ConfigMap `cilia-config`. A CiliumNodeConfig has
others for the nodes that its selector chooses; `cilia build-config`, which runs before each agent,
puts both together. Options of the operator are flags of its Deployment.
"""


def helm(*arguments: str) -> str:
    """What helm prints.

    Raises:
        subprocess.CalledProcessError: with what it says.
    """
    command = [str(asset("helm")), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def template(*arguments: str) -> str:
    """The chart's manifests with these arguments of `helm template`."""
    names = ("cilia", str(CHART), "--namespace=kube-system")
    return helm("template", *names, f"--kube-version={KUBE_VERSION}", *arguments)


def manifests() -> str:
    return MANIFESTS_HEAD + template(f"--set=k8sServiceHost={HOST}")


def options() -> str:
    return "".join(
        [
            OPTIONS_HEAD,
            *_table("Agent: `cilia agent`", AgentConfig),
            *_table("Operator: `cilia operator`", OperatorConfig),
        ]
    )


def _table(title: str, model: type[ProgramConfig]) -> Iterator[str]:
    yield f"\n## {title}\n\n| option | variable | default | what |\n| --- | --- | --- | --- |\n"
    schema = model.model_json_schema()["properties"]
    for name, field in sorted(model.model_fields.items()):
        default = "" if field.default_factory else _shown(schema[name].get("default"))
        choices = f" One of {_choices(schema[name])}." if _choices(schema[name]) else ""
        what = f"{field.description}{choices}".replace("|", "\\|")
        yield f"| `{option_name(name)}` | `{variable_name(name)}` | {default} | {what} |\n"


def _choices(schema: dict[str, Any]) -> str:
    return ", ".join(f"`{choice}`" for choice in schema.get("enum", ()))


def _shown(value: Any) -> str:
    if value in (None, ""):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


# What each file is made by; those of the first group need no helm.
PAGES: dict[Path, Callable[[], str]] = {ROOT / "docs" / "configuration.md": options}
RENDERED: dict[Path, Callable[[], str]] = {
    ROOT / "cilia" / "cli" / "cluster" / "cilia.yaml": manifests
}

if __name__ == "__main__":
    for path, make in {**PAGES, **RENDERED}.items():
        path.write_text(make())
        print(f"wrote {path.relative_to(ROOT)}")

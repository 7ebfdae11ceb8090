# SPDX-License-Identifier: Apache-2.0
"""Files made from others and checked in: `make rendered` writes them, tests compare them.

`--check` writes nothing and needs no helm: it names the files that are not current and fails. For
the manifests it goes by a digest in them, of the chart's files and of the manifests themselves.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
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
    return with_head(template(f"--set=k8sServiceHost={HOST}"))


def with_head(body: str, chart: Path = CHART) -> str:
    """Return rendered manifests below their head: a note for readers, and the digest of the chart
    and of the manifests.
    """
    digest = sha256(KUBE_VERSION.encode())
    for path in sorted(path for path in chart.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(chart)}\0".encode() + path.read_bytes())
    digest.update(body.encode())
    return (
        f"{MANIFESTS_HEAD}# Digest of the chart and of what follows: {digest.hexdigest()}\n{body}"
    )


def is_current(manifests: Path, chart: Path = CHART) -> bool:
    """True if the file was rendered from the chart as it is, and not edited since."""
    text = manifests.read_text()
    body = text.removeprefix(MANIFESTS_HEAD).partition("\n")[2]
    return text == with_head(body, chart)


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
    ROOT / "cilia" / "cli" / "install" / "cilia.yaml": manifests
}


def stale() -> list[Path]:
    """Return the files that are not current; needs no helm."""
    pages = [path for path, make in PAGES.items() if path.read_text() != make()]
    return pages + [path for path in RENDERED if not is_current(path)]


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        names = [str(path.relative_to(ROOT)) for path in stale()]
        for name in names:
            print(f"{name} is not current: run `make rendered`", file=sys.stderr)
        return 1 if names else 0
    for path, make in {**PAGES, **RENDERED}.items():
        path.write_text(make())
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

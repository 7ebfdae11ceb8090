# SPDX-License-Identifier: Apache-2.0
"""The images that `make images` wrote as archives: unpacked, and their programs run.

`make test-images` builds them, on a Debian from no registry, and runs this.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cilia

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = Path(os.environ.get("ARCHIVES") or ROOT / "build" / "images")
NAMES = {"agent": "cilia", "operator": "cilia-operator"}
PROGRAMS = {"agent": ("agent", "build-config", "cleanup", "status"), "operator": ("operator",)}

pytestmark = pytest.mark.timeout(300)


def archive(target: str) -> Path:
    return ARCHIVES / f"{NAMES[target]}.tar"


def tag(target: str) -> str:
    return f"localhost/{NAMES[target]}:{cilia.__version__}"


class Image(NamedTuple):
    """An image as a directory."""

    target: str
    root: Path
    config: dict[str, Any]
    tags: list[str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A program of the image, with its environment and user, and nothing of the machine."""
        user = str(self.config.get("User") or "0:0")
        words = ["chroot", f"--userspec={user}", str(self.root), *command]
        environment = dict(entry.split("=", 1) for entry in self.config["Env"])
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    def entry(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(*self.config["Entrypoint"], *arguments)


def unpack(packed: Path, into: Path) -> None:
    subprocess.run(["tar", "-C", into, "-xf", packed], check=True)


@pytest.fixture(scope="module", params=NAMES)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Image:
    packed, root = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp(request.param)
    root.chmod(0o755)  # a user of the image may enter
    unpack(archive(request.param), packed)
    (manifest,) = json.loads((packed / "manifest.json").read_text())
    config = json.loads((packed / manifest["Config"]).read_text())["config"]
    for layer in manifest["Layers"]:
        unpack(packed / layer, root)
    shutil.rmtree(packed)
    for gone in list(root.rglob(".wh.*")):  # what a layer removed
        removed = gone.with_name(gone.name.removeprefix(".wh."))
        subprocess.run(["rm", "-rf", removed, gone], check=True)
    return Image(request.param, root, config, manifest["RepoTags"])


def test_it_has_the_name_that_is_installed(image: Image) -> None:
    assert image.tags == [tag(image.target)]


def test_its_programs_run(image: Image) -> None:
    version = image.run("cilia", "--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert cilia.__version__ in version.stdout
    for command in PROGRAMS[image.target]:
        said = image.run("cilia", command, "--help")
        assert said.returncode == 0, said.stderr
        assert f"cilia {command}" in said.stdout
    assert image.entry("--help").stdout.startswith("Usage: cilia ")


def test_nothing_that_builds_is_in_it(image: Image) -> None:
    for tool in ("gcc", "clang", "clang-16", "pip", "pip3"):
        assert image.run("sh", "-c", f"command -v {tool}").returncode != 0, tool
    assert not list((image.root / "opt" / "cilia").rglob("site-packages/pip"))


def test_programs_of_the_kernel_and_compiled_modules_are_in_it(image: Image) -> None:
    (site,) = (image.root / "opt" / "cilia" / "lib").glob("python3*/site-packages")
    sources = {path.name.removesuffix(".bpf.c") for path in (ROOT / "bpf").glob("*.bpf.c")}
    assert sources and sources == {path.stem for path in (site / "bpf" / "objects").glob("*.o")}
    assert list((site / "statedb").glob("*.so"))
    plugin = site / "cilia" / "endpoints" / "cni" / "bin" / "cilia-cni"
    assert (
        b'"supportedVersions"'
        in subprocess.run(
            [plugin], env={"CNI_COMMAND": "VERSION"}, input=b"", capture_output=True, check=True
        ).stdout
    )


def test_the_agent_has_all_libraries_that_it_loads(image: Image) -> None:
    said = image.run("python", "-c", "import bpf.libbpf")
    if image.target == "agent":
        assert (said.returncode, said.stderr) == (0, "")
    else:  # the operator speaks to the API server and to nobody else
        assert "libbpf" in said.stderr


def test_the_operator_is_no_user_of_a_machine(image: Image) -> None:
    user = image.run("id", "-u").stdout.strip()
    assert user == {"agent": "0", "operator": "65532"}[image.target]

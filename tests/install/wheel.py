# SPDX-License-Identifier: Apache-2.0
"""A wheel of this checkout, in a fresh environment that has the libraries and nothing else of ours.

The sources are copied first, so that building leaves nothing in the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from cilia.compiled_modules import groups

GROUPS = groups()
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"statedb", "reconcilers", "tables", "bpf", "cilia"}

pytestmark = pytest.mark.timeout(600)


class Installed(NamedTuple):
    """An environment with the wheel."""

    wheel: Path
    bin: Path
    #: An empty directory outside of the checkout, to run in.
    cwd: Path

    def run(self, *command: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
        """A program of the environment; nothing of the caller's Python settings is passed on."""
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.cwd,
            env={"PATH": path, "HOME": str(self.cwd)},
            capture_output=True,
            text=True,
            check=False,
        )

    def python(self, code: str, path: str = "/usr/bin:/bin") -> str:
        done = self.run("python", "-c", code, path=path)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    directory = tmp_path_factory.mktemp("wheel")
    (directory / "empty").mkdir()
    wheel = _build(directory / "source", directory / "dist")
    environment = directory / "venv"
    venv.create(environment, symlinks=True)
    site = next(environment.glob("lib/python*/site-packages"))
    # A directory that is named here is searched, but its own .pth files, by which the checkout is
    # found, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("platlib") + "\n")
    python = environment / "bin" / "python"
    _call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel)
    return Installed(wheel, environment / "bin", directory / "empty")


def _build(source: Path, dist: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", dist, source)
    _call(sys.executable, *command)
    (wheel,) = dist.glob("*.whl")
    return wheel


def _call(*command: object) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_the_wheel_has_what_it_is_made_of_and_no_more(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    shared = {top for top in tops if "__mypyc" in top}
    assert len(shared) == len(GROUPS), "a group of compiled modules shares one library"
    assert {top for top in tops if ".dist-info" not in top} == PACKAGES | shared
    sources = sorted(path.name.removesuffix(".bpf.c") for path in (ROOT / "bpf").glob("*.bpf.c"))
    assert sources
    assert {f"bpf/objects/{name}.o" for name in sources} <= set(names)


def test_the_wheel_has_the_cni_plugin(installed: Installed) -> None:
    """It runs without the environment, and without a library of the machine."""
    code = "from cilia.endpoints.cni.forwarder import built; print(built())"
    program = installed.python(code).strip()
    done = subprocess.run(
        [program], env={"CNI_COMMAND": "VERSION"}, input=b"", capture_output=True, check=True
    )
    assert b'"supportedVersions"' in done.stdout
    assert b"INTERP" not in subprocess.check_output(["readelf", "--program-headers", program])


def test_what_runs_is_what_was_installed(installed: Installed) -> None:
    code = f"for n in {sorted(PACKAGES)}: print(__import__(n).__file__)"
    for line in installed.python(code).splitlines():
        assert Path(line).is_relative_to(installed.bin.parent), line


def test_what_shall_be_compiled_is(installed: Installed) -> None:
    names = [
        module.removesuffix(".py").replace("/", ".") for group in GROUPS for module in group.modules
    ]
    code = f"import importlib\nfor n in {names}: print(importlib.import_module(n).__file__)"
    files = installed.python(code).splitlines()
    assert len(files) == len(names)
    assert [file for file in files if not file.endswith(".so")] == []


def test_a_dry_run_shows_what_would_be_programmed(installed: Installed) -> None:
    manifests = installed.cwd / "manifests"
    shutil.copytree(ROOT / "examples" / "quickstart", manifests)
    done = installed.run("cilia", "agent", f"--k8s-manifests={manifests}", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("SVC:")], done.stdout
    assert [line for line in lines if line.startswith("BE:")], done.stdout


def test_no_compiler_is_needed_for_the_bpf_programs(installed: Installed) -> None:
    code = (
        "from bpf import compile\n"
        "for name in compile.sources(): print(name, compile.load_object(name)[:4])"
    )
    printed = installed.python(code, path="/nowhere")
    assert printed.count(r"b'\x7fELF'") == len(printed.splitlines()) >= 1


@pytest.mark.root
def test_the_binding_works_in_the_kernel(installed: Installed) -> None:
    code = "from bpf import features; features.require_privilege(); features.require_kernel()"
    assert installed.python(code) == ""

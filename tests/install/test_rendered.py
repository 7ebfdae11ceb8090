# SPDX-License-Identifier: Apache-2.0
"""What is made from other files and checked in is current."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.install.rendered import CHART, PAGES, RENDERED, ROOT, is_current


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_are_current(path: Path) -> None:
    assert path.read_text() == PAGES[path](), "run `make rendered`"


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.name)
def test_manifests_are_of_the_chart_as_it_is(path: Path) -> None:
    assert is_current(path), "run `make rendered`"


@pytest.mark.parametrize("name", ["values.yaml", "templates/operator.yaml", "templates/new.yaml"])
def test_manifests_are_stale_when_the_chart_is_changed(tmp_path: Path, name: str) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    with (chart / name).open("a") as file:
        file.write("# changed\n")
    assert not any(is_current(path, chart) for path in RENDERED)


def test_manifests_are_stale_when_they_are_edited(tmp_path: Path) -> None:
    (path,) = RENDERED
    edited = tmp_path / path.name
    edited.write_text(path.read_text() + "# changed\n")
    assert not is_current(edited)


def test_the_manifests_for_kubectl_are_those_of_the_command() -> None:
    link = ROOT / "install" / "kubernetes" / "cilia.yaml"
    assert link.is_symlink() and link.resolve() == ROOT / "cilia" / "cli" / "install" / "cilia.yaml"

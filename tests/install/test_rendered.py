# SPDX-License-Identifier: Apache-2.0
"""What is made from other files and checked in is current."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.install.rendered import PAGES, ROOT


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_are_current(path: Path) -> None:
    assert path.read_text() == PAGES[path](), "run `make rendered`"


def test_the_manifests_for_kubectl_are_those_of_the_command() -> None:
    link = ROOT / "install" / "kubernetes" / "cilia.yaml"
    assert link.is_symlink() and link.resolve() == ROOT / "cilia" / "cli" / "cluster" / "cilia.yaml"

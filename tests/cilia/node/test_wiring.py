# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from cilia.node.options import NodeOptions
from cilia.node.wiring import build
from cilia.program.errors import ProgramError
from tests.context import new_context


def test_a_directory_without_kernel_parameters_ends_the_start(tmp_path: Path) -> None:
    """Else parameters that are optional would be left as they are, and nobody told."""
    ctx = new_context()
    with pytest.raises(ProgramError, match="no proc file system with sys/net is there"):
        build(ctx, NodeOptions(procfs=tmp_path), observe=True)

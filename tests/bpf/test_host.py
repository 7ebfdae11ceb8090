# SPDX-License-Identifier: Apache-2.0
"""Packets from outside through the programs of a node's devices, by tc and by XDP."""

from __future__ import annotations

import pytest

from tests.bpf.datapath_world import loaded

pytestmark = pytest.mark.root


@pytest.mark.parametrize("name", ["host", "xdp"])
def test_programs_are_verified(name: str) -> None:
    with loaded([name]) as datapath:
        assert datapath

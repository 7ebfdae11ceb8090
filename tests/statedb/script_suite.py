# SPDX-License-Identifier: Apache-2.0
"""What the scripts in testdata/statedb run against."""

from tests.statedb_application import SUITE

__all__ = ["SUITE"]

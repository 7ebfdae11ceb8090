# SPDX-License-Identifier: Apache-2.0
"""Names of instances: part of paths, of cgroups, of network namespaces and of devices."""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT_INSTANCE", "PATTERN"]

DEFAULT_INSTANCE: Final = "cilia"
PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$"

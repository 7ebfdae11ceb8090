# SPDX-License-Identifier: Apache-2.0
"""Services, frontends, backends, redirect policies, reports."""

__all__: list[str] = []

# SPDX-License-Identifier: Apache-2.0
"""Exclusions of masquerading into the maps of programs."""

__all__: list[str] = []

# SPDX-License-Identifier: Apache-2.0
"""Tables of security identities."""

__all__: list[str] = []

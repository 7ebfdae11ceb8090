# SPDX-License-Identifier: Apache-2.0
"""Security identities: which labels make one, and its number.

Start with `labels.py`.
"""

__all__: list[str] = []

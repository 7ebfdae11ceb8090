# SPDX-License-Identifier: Apache-2.0
"""Local redirect policies: objects to rows, rows to frontends.

Start with `controller.py`.
"""

__all__: list[str] = []

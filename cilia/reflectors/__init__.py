# SPDX-License-Identifier: Apache-2.0
"""From outside into tables: one module for each thing that is reflected.

A reflector follows a source, gathers what comes, converts it and writes it in short transactions.
It decides nothing beyond that (``cilia.controllers`` does). Start with ``batch`` and ``services``;
``devices`` is the one that follows the kernel.
"""

__all__: list[str] = []

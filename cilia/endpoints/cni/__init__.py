# SPDX-License-Identifier: Apache-2.0
"""The Container Network Interface, version 1.1 of its specification, on the agent's side.

A container runtime runs `cilia-cni`, a static program of `cni/` at the top of the repository, which
hands its environment, its input and the opened network namespace to `server.py` here and prints the
answer. Belongs here: what of this is the same whoever carries requests out. What ADD and the others
do is no part of it: that is a `Plugin` (`plugin.py`). Start at `server.py`.

The build imports `forwarder.py` and has the standard library alone, so this imports nothing.
"""

__all__: list[str] = []

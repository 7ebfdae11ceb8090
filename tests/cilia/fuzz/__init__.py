# SPDX-License-Identifier: Apache-2.0
"""Hostile input to an agent's control plane in this process, with memory for maps.

Belongs here: what makes inputs from numbers, the world that takes them, what has to hold. The test
tries some hundreds of them; `python -m tests.soak.fuzz` tries as many as it is asked to.
"""

__all__: list[str] = []

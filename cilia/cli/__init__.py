# SPDX-License-Identifier: Apache-2.0
"""The sub-commands for people: each module is one, imported only when it is called.

They reach the agent through `cilia.api` alone; `cilia bpf` reads pinned maps and works without one.
"""

__all__: list[str] = []

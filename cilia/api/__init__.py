# SPDX-License-Identifier: Apache-2.0
"""What the agent and its clients agree on: paths, request and response types, the socket client.

Standard library and the connection of `statedb.web`, quick to import: each `cilia` command pays
for it.
"""

__all__: list[str] = []

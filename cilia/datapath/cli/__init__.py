# SPDX-License-Identifier: Apache-2.0
"""`cilia bpf`: pinned maps, also with the agent dead."""

__all__: list[str] = []

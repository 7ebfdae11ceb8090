# SPDX-License-Identifier: Apache-2.0
"""The agent as users run it: a process, real programs and sockets, no way out of its namespace."""

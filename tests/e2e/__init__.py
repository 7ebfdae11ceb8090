# SPDX-License-Identifier: Apache-2.0
"""The agent as users run it: a process, real programs, real sockets, in a namespace without a way out."""

# SPDX-License-Identifier: Apache-2.0
"""The edge to Kubernetes: objects as they are read, and where they come from.

Belongs here: the slim object models, the protocol of list-then-watch events (``watch``) and its
sources (a directory of manifests, an object tracker for scripts). Does not belong here: tables and
what the objects mean, which is the business of each feature's reflectors. Start with ``watch``.
"""

__all__: list[str] = []

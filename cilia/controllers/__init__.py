# SPDX-License-Identifier: Apache-2.0
"""Tables to tables: what follows from what was asked for. One package a subject.

A controller reads snapshots, writes one kind of thing and calls no edge. Start with
``loadbalancer``.
"""

__all__: list[str] = []

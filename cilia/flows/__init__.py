# SPDX-License-Identifier: Apache-2.0
"""What the datapath reports of packets: who asks for it, and how people see it.

::

    programs ──cilia_events──> reader.py ──> listener.py ──> routes.py ──> cli/monitor.py
                                              a bounded queue each

What belongs here: the one reader of the ring buffer, those who listen to it, and how people see
events. Not here: the layout of a record and the names in it (`bpf/events.py`, `bpf/reasons.py`).
Start with `reader.py`.
"""

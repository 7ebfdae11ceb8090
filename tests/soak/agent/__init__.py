# SPDX-License-Identifier: Apache-2.0
"""Churn of everything around a real agent, and what must not grow in it meanwhile.

    objects    Services, slices, nodes, pods … that come, change and go; some of them faulty
    stores     where they are written: files of a directory, or a real API server
    busy       threads: writers of objects, the network, clients, commands, watches
    samples    what is read of the agent's process, its metrics and its maps
    verdict    which of the samples grew
    inside     what the agent runs beside its own: collections, and leaks that must be seen

Start reading at `churn.py`.
"""

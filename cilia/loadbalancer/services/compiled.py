# SPDX-License-Identifier: Apache-2.0
"""Modules that a build compiles with mypyc: the way of a Service from its object to its rows."""

MODULES = (
    "cilia/loadbalancer/services/candidates.py",
    "cilia/loadbalancer/services/claims.py",
    "cilia/loadbalancer/services/conversion.py",
    "cilia/loadbalancer/services/endpoints.py",
    "cilia/loadbalancer/services/selection.py",
    "cilia/loadbalancer/services/writer.py",
    "cilia/loadbalancer/services/known_slices.py",
    "cilia/loadbalancer/services/batch.py",
    "cilia/loadbalancer/services/complaints.py",
    "cilia/loadbalancer/services/known_objects.py",
    "cilia/loadbalancer/services/orphans.py",
    "cilia/loadbalancer/services/batch_writer.py",
    "cilia/loadbalancer/services/reflector.py",
)

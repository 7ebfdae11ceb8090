# SPDX-License-Identifier: Apache-2.0
"""Which modules are compiled on the way of a Service from its object to its rows (see
``statedb.compiled``); the reflector at its beginning is one of them."""

from statedb.compiled import Group

LOADBALANCER = Group(
    "loadbalancer",
    (
        "cilia/loadbalancer/claim_queue.py",
        "cilia/loadbalancer/claims.py",
        "cilia/loadbalancer/conversion.py",
        "cilia/loadbalancer/endpoints.py",
        "cilia/loadbalancer/selection.py",
        "cilia/loadbalancer/writer.py",
        "cilia/loadbalancer/known_slices.py",
        "cilia/loadbalancer/reflector.py",
    ),
)

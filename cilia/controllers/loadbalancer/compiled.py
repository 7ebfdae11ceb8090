# SPDX-License-Identifier: Apache-2.0
"""Which modules are compiled on the way of a Service from its object to its rows (see
``statedb.compiled``); the reflector at its beginning is one of them."""

from statedb.compiled import Group

LOADBALANCER = Group(
    "loadbalancer",
    (
        "cilia/controllers/loadbalancer/claim_queue.py",
        "cilia/controllers/loadbalancer/claims.py",
        "cilia/controllers/loadbalancer/conversion.py",
        "cilia/controllers/loadbalancer/endpoints.py",
        "cilia/controllers/loadbalancer/selection.py",
        "cilia/controllers/loadbalancer/writer.py",
        "cilia/reflectors/known_slices.py",
        "cilia/reflectors/services.py",
    ),
)

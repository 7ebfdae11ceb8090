# SPDX-License-Identifier: Apache-2.0
"""Which modules of this package are compiled (see `statedb.compiled`): the way of a frontend from
a row to the maps, and the rounds of the engine.
"""

from statedb.compiled import Group

RECONCILERS = Group(
    "reconcilers",
    (
        "reconcilers/backend_references.py",
        "reconcilers/frontend_details.py",
        "reconcilers/frontend_entries.py",
        "reconcilers/frontend_maps.py",
        "reconcilers/frontend_plans.py",
        "reconcilers/frontends.py",
        "reconcilers/id_allocator.py",
        "reconcilers/incremental.py",
        "reconcilers/node_ports.py",
        "reconcilers/restored_frontends.py",
        "reconcilers/staged_maps.py",
        "reconcilers/staged_tables.py",
        "reconcilers/wildcard_owners.py",
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Modules of this package that a build compiles with mypyc: the way of a frontend from a row to the
maps, and the rounds of the engine.
"""

MODULES = (
    "reconcilers/loadbalancer/backend_references.py",
    "reconcilers/loadbalancer/frontend_details.py",
    "reconcilers/loadbalancer/frontend_entries.py",
    "reconcilers/loadbalancer/frontend_maps.py",
    "reconcilers/loadbalancer/frontend_plans.py",
    "reconcilers/loadbalancer/frontends.py",
    "reconcilers/loadbalancer/id_allocator.py",
    "reconcilers/loadbalancer/machine_addresses.py",
    "reconcilers/incremental.py",
    "reconcilers/loadbalancer/node_ports.py",
    "reconcilers/loadbalancer/restored_frontends.py",
    "reconcilers/maps/staged.py",
    "reconcilers/loadbalancer/staged_tables.py",
    "reconcilers/loadbalancer/wildcard_owners.py",
)

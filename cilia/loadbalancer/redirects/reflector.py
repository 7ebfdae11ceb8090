# SPDX-License-Identifier: Apache-2.0
"""CiliumLocalRedirectPolicies into ``localredirectpolicies``; what is refused or
unknown into ``problems``."""

from __future__ import annotations

from collections.abc import Sequence

from cilia.cluster.batch import WAIT_S
from cilia.cluster.objects import ObjectReflector
from cilia.k8s.crds import CiliumLocalRedirectPolicy
from cilia.k8s.crds.custom import UNKNOWN
from cilia.k8s.watch import Source
from cilia.loadbalancer.redirects.conversion import convert_policy
from statedb import DB, RWTable
from tables.loadbalancer.redirect_policies import RedirectPolicy
from tables.loadbalancer.services import IPNetwork
from tables.problems import Problem


def redirect_policy_reflector(
    source: Source,
    db: DB,
    policies: RWTable[RedirectPolicy],
    problems: RWTable[Problem],
    *,
    allowed: Sequence[IPNetwork] = (),
    wait_s: float = WAIT_S,
) -> ObjectReflector[CiliumLocalRedirectPolicy, RedirectPolicy]:
    """``allowed``: see ``convert_policy``."""
    return ObjectReflector(
        source,
        CiliumLocalRedirectPolicy,
        db,
        policies,
        lambda obj: convert_policy(obj, allowed),
        problems,
        wait_s=wait_s,
        remarks=lambda obj: [(path, UNKNOWN) for path in obj.unknown_fields()],
    )

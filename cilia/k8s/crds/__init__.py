# SPDX-License-Identifier: Apache-2.0
"""Kinds of the group cilium.io: a model each, from which also the API server's schema is made.

Belongs here: models and definitions of custom resources. Not: who registers them (the operator) and
who acts on them (reflectors). Start at `definitions.py`.
"""

from cilia.k8s.crds.definitions import DEFINITIONS, POD_NETWORK_DEFINITIONS, Definition
from cilia.k8s.crds.endpoints import CiliumEndpoint
from cilia.k8s.crds.identities import CiliumIdentity
from cilia.k8s.crds.node_configs import CiliumNodeConfig
from cilia.k8s.crds.redirect_policies import CiliumLocalRedirectPolicy
from cilia.k8s.crds.schema import openapi_schema
from cilia.k8s.objects import register

# Kinds that reflectors follow, so that sources take their objects.
register(CiliumEndpoint)
register(CiliumIdentity)
register(CiliumLocalRedirectPolicy)

__all__ = [
    "DEFINITIONS",
    "POD_NETWORK_DEFINITIONS",
    "CiliumEndpoint",
    "CiliumIdentity",
    "CiliumLocalRedirectPolicy",
    "CiliumNodeConfig",
    "Definition",
    "openapi_schema",
]

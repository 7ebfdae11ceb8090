# SPDX-License-Identifier: Apache-2.0
"""Which frontends wait while inputs are unread, and which do not.

What cannot be read now (a broken file, a resource that the API server refuses) holds up what is
removed. Rows of what is read come into force at once, but for those that could do harm half-read:
one without endpoints would refuse clients, a Service's slices may not be listed yet, a policy may
redirect it, or it is meant for nodes that have a label.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bpf.maps.lb_numbers import FrontendType
from cilia.k8s.objects import EndpointSlice, Service
from cilia.loadbalancer.annotations import depends_on_node
from cilia.loadbalancer.redirects.controller import INITIALIZER as REDIRECT_POLICIES
from cilia.loadbalancer.services.reflector import initializer_of
from statedb import Channel, ReadTxn, Table
from tables.cluster.k8s_watches import K8sWatch
from tables.cluster.nodes import Node
from tables.loadbalancer.frontends import Frontend
from tables.sources import Source

__all__ = ["UnreadInputs"]

_SERVICE_OBJECTS: Final = (Service.RESOURCE, EndpointSlice.RESOURCE)
_SERVICES: Final = initializer_of(Source.K8S)
_ALL_SERVICES: Final = frozenset(map(initializer_of, Source))
# Names beside those of initializers.
_LISTS: Final = "lists of services and endpointslices"
_OWN_NODE: Final = "own node"
# An API server allocates them.
_GIVEN: Final = (FrontendType.CLUSTER_IP, FrontendType.NODE_PORT)
# Frontends of pods and policies, which need no Service object.
_OF_OTHERS: Final = (FrontendType.HOST_PORT, FrontendType.LOCAL_REDIRECT)


class UnreadInputs:
    """The `Holds` of frontends."""

    def __init__(
        self,
        frontends: Table[Frontend],
        watches: Table[K8sWatch],
        nodes: Table[Node],
        node_name: str,
    ) -> None:
        self._frontends = frontends
        self._watches = watches
        self._nodes = nodes
        self._node_name = node_name

    def unread(self, txn: ReadTxn) -> frozenset[str]:
        """Return what is unread; nothing once the table is initialized."""
        names = set(self._frontends.pending_initializers(txn))
        if not names:
            return frozenset()
        if _SERVICES in names and self._reads_api_server(txn):
            names.add(_LISTS)
        is_known = self._nodes.get(txn, self._node_name) is not None
        if not is_known and not self._nodes.initialized(txn):
            names.add(_OWN_NODE)
        return frozenset(names)

    def reason(self, unread: frozenset[str], fe: Frontend) -> str:
        """Return why the row has to wait."""
        if not fe.backends:
            return "no endpoint of it was read"
        if fe.redirect_to is not None or fe.type in _OF_OTHERS:
            return ""
        if _LISTS in unread and fe.service.source is Source.K8S:
            return f"the {_LISTS} are not complete"
        if REDIRECT_POLICIES in unread and fe.type is FrontendType.CLUSTER_IP:
            return "a local redirect policy for it may be unread"
        if _OWN_NODE in unread and depends_on_node(fe.service.annotations):
            return "the object of this node is not read, and it is meant for some nodes"
        return ""

    def may_lack_services(self, unread: frozenset[str]) -> bool:
        """True while a Service or endpoints of one may be in what is unread: several sources may
        have endpoints of one Service."""
        return not _ALL_SERVICES.isdisjoint(unread)

    def is_given(self, unread: frozenset[str], fe: Frontend) -> bool:
        """True if the source gives such an address to one Service at a time, and is read whole."""
        return fe.type in _GIVEN and initializer_of(fe.service.source) not in unread

    def watch(self, txn: ReadTxn) -> Iterable[Channel]:
        """Return what closes when `unread` may return something else."""
        yield self._frontends.filled_watch(txn)[1]
        yield self._nodes.get_watch(txn, self._node_name)[1]
        yield self._nodes.filled_watch(txn)[1]

    def _reads_api_server(self, txn: ReadTxn) -> bool:
        """True if lists come in pages, of which some may be missing; a file is read as a whole, and
        mostly has a Service with its slices.
        """
        return any(self._watches.get(txn, resource) for resource in _SERVICE_OBJECTS)

# SPDX-License-Identifier: Apache-2.0
"""The labels and the identity of an endpoint, from its pod and namespace."""

from __future__ import annotations

import msgspec

from cilia.identity.identities import LocalIdentities
from cilia.identity.labels import pod_labels
from statedb import ReadTxn, RWTable, Table, WriteTxn
from tables.cluster.namespaces import Namespace
from tables.cluster.pods import Pod
from tables.endpoints.endpoints import Endpoint
from tables.identity.identities import Identity

__all__ = ["EndpointIdentities", "pod_of"]


def pod_of(pods: Table[Pod], txn: ReadTxn, ep: Endpoint) -> Pod | None:
    """Return the endpoint's pod, and not a later one of its name."""
    pod = pods.get(txn, ep.pod_name) if ep.pod else None
    return pod if pod is not None and ep.pod_uid in ("", pod.uid) else None


class EndpointIdentities:
    """Called inside a transaction over ``identities``; pods and namespaces are read."""

    def __init__(
        self, pods: Table[Pod], namespaces: Table[Namespace], identities: RWTable[Identity]
    ) -> None:
        self._pods = pods
        self._namespaces = namespaces
        self._numbers = LocalIdentities(identities)

    def named(self, txn: ReadTxn, ep: Endpoint) -> Endpoint:
        """Return an endpoint whose file was lost with the name of the pod that has its address."""
        if ep.pod or ep.attachment.container_id:
            return ep
        for pod in self._pods.all(txn):
            if not pod.host_network and set(ep.addresses) & set(pod.ips):
                return msgspec.structs.replace(
                    ep, namespace=pod.namespace, pod=pod.name, pod_uid=pod.uid
                )
        return ep

    def assign(self, wtxn: WriteTxn, ep: Endpoint) -> Endpoint:
        """Return the endpoint with the labels that its pod has now, and their number.

        A pod that is gone keeps what it had. Raises: IdentitiesExhausted.
        """
        labels = ep.labels
        pod = pod_of(self._pods, wtxn, ep)
        if pod is not None:
            namespace = self._namespaces.get(wtxn, pod.namespace)
            of_namespace = namespace.labels if namespace is not None else {}
            labels = pod_labels(pod.labels, pod.namespace, of_namespace, pod.service_account)
        if ep.identity and labels == ep.labels:
            return ep
        if ep.identity and not ep.labels:  # of the run before, whose labels were not known yet
            number = self._numbers.restore(wtxn, ep.identity, labels)
        else:
            number = self._numbers.number_of(wtxn, labels)
        return msgspec.structs.replace(ep, labels=labels, identity=number)

    def restore(self, wtxn: WriteTxn, ep: Endpoint) -> Endpoint:
        """Return the endpoint with the number that it had before a restart, where that is free."""
        if not ep.identity or not ep.labels:
            return ep
        number = self._numbers.restore(wtxn, ep.identity, ep.labels)
        return msgspec.structs.replace(ep, identity=number)

    def keep(self, wtxn: WriteTxn, used: set[int]) -> None:
        """Take back the numbers of labels that no endpoint has."""
        self._numbers.keep(wtxn, used)

# SPDX-License-Identifier: Apache-2.0
"""Labels, identity and annotations of an endpoint, from its pod and namespace."""

from __future__ import annotations

import msgspec

from cilia.endpoints.annotations import not_in_force
from cilia.identity.desired import Claim, DesiredIdentities
from cilia.identity.labels import pod_labels
from statedb import ReadTxn, Table
from tables.cluster.namespaces import Namespace
from tables.cluster.pods import Pod
from tables.endpoints.endpoints import Endpoint

__all__ = ["EndpointIdentities", "pod_of"]


def pod_of(pods: Table[Pod], txn: ReadTxn, ep: Endpoint) -> Pod | None:
    """Return the endpoint's pod, and not a later one of its name."""
    pod = pods.get(txn, ep.pod_name) if ep.pod else None
    return pod if pod is not None and ep.pod_uid in ("", pod.uid) else None


class EndpointIdentities:
    """Reads pods, namespaces and identities, and writes nothing."""

    def __init__(
        self, pods: Table[Pod], namespaces: Table[Namespace], desired: DesiredIdentities
    ) -> None:
        self._pods = pods
        self._namespaces = namespaces
        self._desired = desired

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

    def annotated(self, txn: ReadTxn, ep: Endpoint) -> Endpoint:
        """Return the endpoint with the annotations of its pod that change nothing here."""
        pod = pod_of(self._pods, txn, ep)
        ignored = not_in_force(pod.annotations) if pod is not None else ep.ignored
        return ep if ignored == ep.ignored else msgspec.structs.replace(ep, ignored=ignored)

    def assign(self, txn: ReadTxn, ep: Endpoint) -> tuple[Endpoint, list[Claim]]:
        """Return the endpoint with the identity of its labels, and what it needs of identities.

        It keeps labels and number that are in force until those of its pod's labels have a number.
        """
        in_force = (ep.labels, ep.identity)
        chosen, claims = self._desired.choose(txn, self._labels(txn, ep), in_force)
        # A container outside Kubernetes has no other place for the labels that it wants.
        labels, number = chosen if ep.pod else (ep.labels, chosen[1])
        if (labels, number) != in_force:
            ep = msgspec.structs.replace(ep, labels=labels, identity=number)
        return ep, claims

    def _labels(self, txn: ReadTxn, ep: Endpoint) -> tuple[str, ...]:
        """Return the labels that its pod has now; a pod that is gone keeps what it had."""
        pod = pod_of(self._pods, txn, ep)
        if pod is None:
            return ep.labels
        namespace = self._namespaces.get(txn, pod.namespace)
        of_namespace = namespace.labels if namespace is not None else {}
        return pod_labels(pod.labels, pod.namespace, of_namespace, pod.service_account)

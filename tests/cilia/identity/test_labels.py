# SPDX-License-Identifier: Apache-2.0
"""Which labels make an identity, and that nobody chooses those of another namespace."""

from __future__ import annotations

import pytest

from cilia.identity.labels import container_labels, pod_labels

OWN = (
    "k8s:io.cilium.k8s.policy.cluster=default",
    "k8s:io.cilium.k8s.policy.serviceaccount=default",
    "k8s:io.kubernetes.pod.namespace=shop",
)


def test_a_pod_without_labels_has_an_identity() -> None:
    assert pod_labels({}, "shop", {}, "") == OWN


def test_labels_of_pod_namespace_and_account_make_it() -> None:
    found = pod_labels({"app": "web", "empty": ""}, "shop", {"tier": "gold"}, "seller")
    assert found == (
        "k8s:app=web",
        "k8s:empty",
        "k8s:io.cilium.k8s.namespace.labels.tier=gold",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=seller",
        "k8s:io.kubernetes.pod.namespace=shop",
    )


@pytest.mark.parametrize(
    "key",
    [
        "pod-template-hash",
        "controller-revision-hash",
        "statefulset.kubernetes.io/pod-name",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/controller-uid",
        "apps.kubernetes.io/pod-index",
        "topology.kubernetes.io/zone",
        "beta.kubernetes.io/arch",
        "failure-domain.beta.kubernetes.io/zone",
        "kubernetes.io/hostname",
        "k8s.io/name",
        "annotation.whatever",
    ],
)
def test_what_changes_with_an_instance_makes_none(key: str) -> None:
    assert pod_labels({key: "1"}, "shop", {}, "") == OWN


@pytest.mark.parametrize("key", ["app.kubernetes.io/name", "foo.kubernetes.io/x", "x.k8s.io/y"])
def test_keys_that_only_look_alike_stay(key: str) -> None:
    assert f"k8s:{key}=1" in pod_labels({key: "1"}, "shop", {}, "")


def test_labels_of_a_namespace_stay_whatever_their_key() -> None:
    found = pod_labels({}, "shop", {"kubernetes.io/metadata.name": "shop"}, "")
    assert "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop" in found


@pytest.mark.parametrize(
    "key",
    [
        "io.kubernetes.pod.namespace",
        "io.cilium.k8s.policy.serviceaccount",
        "io.cilium.k8s.policy.cluster",
        "io.cilium.k8s.namespace.labels.tier",
        "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
        "reserved",
        "reserved:host",
    ],
)
def test_a_pod_cannot_choose_what_only_the_cluster_says(key: str) -> None:
    assert pod_labels({key: "other"}, "shop", {}, "") == OWN
    assert container_labels({key: "other"}) == ("cni:io.cilium.k8s.policy.cluster=default",)

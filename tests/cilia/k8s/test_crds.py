# SPDX-License-Identifier: Apache-2.0
"""Custom resources: models, the schemas made from them, and fields that no model knows."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from cilia.k8s.crds import (
    DEFINITIONS,
    POD_NETWORK_DEFINITIONS,
    CiliumEndpoint,
    CiliumIdentity,
    CiliumLocalRedirectPolicy,
    CiliumNodeConfig,
    Definition,
)
from cilia.k8s.crds.definitions import SCHEMA_NUMBER
from cilia.k8s.crds.identities import identity_form
from cilia.k8s.crds.label_selectors import LabelSelector
from cilia.k8s.objects import decode

# Number and content of all definitions. A test that fails here says: raise SCHEMA_NUMBER, or
# operators that know the former schema leave it in place.
KNOWN = (2, "37bf534e6ee7bf90")
KNOWN_OF_POD_NETWORK = (2, "ccff10d2790c5ca7")
ALL = (*DEFINITIONS, *POD_NETWORK_DEFINITIONS)
OF_EVERY_KIND = ("apiVersion", "kind", "metadata")

POLICY: dict[str, Any] = {
    "metadata": {"name": "dns", "namespace": "kube-system"},
    "spec": {
        "redirectFrontend": {
            "serviceMatcher": {"serviceName": "kube-dns", "namespace": "kube-system"}
        },
        "redirectBackend": {
            "localEndpointSelector": {"matchLabels": {"k8s-app": "node-local-dns"}},
            "toPorts": [{"port": "53", "protocol": "UDP", "name": "dns"}],
        },
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    """The policy with another value at a path of keys and numbers."""
    form: dict[str, Any] = json.loads(json.dumps(POLICY))
    at: Any = form
    *parents, last = path.split("/")
    for part in parents:
        at = at[int(part) if part.isdigit() else part]
    at[last] = value
    return form


def schemas(form: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema."""
    yield form
    for inner in form.get("properties", {}).values():
        yield from schemas(inner)
    for key in ("items", "additionalProperties"):
        if key in form:
            yield from schemas(form[key])


@pytest.mark.parametrize(
    ("definitions", "known"),
    [(DEFINITIONS, KNOWN), (POD_NETWORK_DEFINITIONS, KNOWN_OF_POD_NETWORK)],
)
def test_definitions_change_only_with_their_number(
    definitions: tuple[Definition, ...], known: tuple[int, str]
) -> None:
    text = json.dumps([d.manifest() for d in definitions], sort_keys=True)
    assert (SCHEMA_NUMBER, hashlib.sha256(text.encode()).hexdigest()[:16]) == known


@pytest.mark.parametrize("definition", ALL, ids=lambda d: d.name)
def test_schemas_are_structural_and_prune_nothing(definition: Definition) -> None:
    (version,) = definition.manifest()["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    fields = [f for name, f in properties.items() if name not in OF_EVERY_KIND]
    assert fields
    for schema in itertools.chain.from_iterable(map(schemas, fields)):
        assert "type" in schema and "$ref" not in schema and "anyOf" not in schema
        if "properties" in schema:
            assert schema["x-kubernetes-preserve-unknown-fields"] is True


def test_an_identity_is_the_fields() -> None:
    (definition,) = [d for d in POD_NETWORK_DEFINITIONS if d.kind is CiliumIdentity]
    spec = definition.manifest()["spec"]
    assert (spec["scope"], spec["names"]["plural"]) == ("Cluster", "ciliumidentities")
    assert spec["names"]["shortNames"] == ["ciliumid"]
    (version,) = spec["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    assert (version["name"], schema["required"]) == ("v2", ["security-labels"])
    labels = schema["properties"]["security-labels"]
    assert labels["additionalProperties"] == {"type": "string"}
    assert [column["name"] for column in version["additionalPrinterColumns"]] == [
        "Namespace",
        "Age",
    ]


def test_an_endpoint_is_the_fields() -> None:
    (definition,) = [d for d in POD_NETWORK_DEFINITIONS if d.kind is CiliumEndpoint]
    spec = definition.manifest()["spec"]
    assert (spec["scope"], spec["names"]["plural"]) == ("Namespaced", "ciliumendpoints")
    assert spec["names"]["shortNames"] == ["ciliumep", "cep"]
    (version,) = spec["versions"]
    assert version["name"] == "v2"
    assert "subresources" not in version, "one write has metadata and status"
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert sorted(status) == [
        *("external-identifiers", "id", "identity", "named-ports", "networking", "state")
    ]
    assert status["networking"]["required"] == ["addressing"]
    columns = [(c["name"], c["type"]) for c in version["additionalPrinterColumns"]]
    assert columns == [
        ("Security Identity", "integer"),
        ("Endpoint State", "string"),
        ("IPv4", "string"),
        ("IPv6", "string"),
        ("Age", "date"),
    ]


def test_the_labels_of_an_identity_are_read_and_written() -> None:
    labels = ("cni:team=red", "k8s:app=a=b", "k8s:flag", "k8s:io.kubernetes.pod.namespace=shop")
    form = identity_form(300, labels)
    assert form["security-labels"]["k8s:app"] == "a=b"
    assert form["metadata"] == {
        "name": "300",
        "labels": {"io.kubernetes.pod.namespace": "shop"},
    }
    read = decode(form)
    assert isinstance(read, CiliumIdentity)
    assert read.labels == labels
    assert "labels" not in identity_form(300, ("k8s:app=web",))["metadata"]


def test_names_are_the_fields() -> None:
    policy, node_config = (d.manifest()["spec"] for d in DEFINITIONS)
    assert policy["group"] == node_config["group"] == "cilium.io"
    assert policy["names"]["shortNames"] == ["ciliumlrp"]
    assert [v["name"] for v in policy["versions"]] == ["v2"]
    assert policy["names"]["plural"] == "ciliumlocalredirectpolicies"
    assert node_config["names"]["plural"] == "ciliumnodeconfigs"


def test_a_policy_is_read() -> None:
    policy = CiliumLocalRedirectPolicy.model_validate(POLICY)
    matcher = policy.spec.redirect_frontend.service_matcher
    assert matcher is not None and matcher.service_name == "kube-dns"
    assert policy.spec.redirect_backend.to_ports[0].port == "53"
    assert policy.spec.skip_redirect_from_backend is False


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/redirectBackend/toPorts/0/port", "0"),
        ("spec/redirectBackend/toPorts/0/port", "65536"),
        ("spec/redirectBackend/toPorts/0/port", 53),
        ("spec/redirectBackend/toPorts/0/protocol", "SCTP"),
        ("spec/redirectBackend/toPorts/0/name", "-1-"),
        ("spec/redirectFrontend", {}),
        ("spec/redirectFrontend/addressMatcher", {"ip": "169.254.1.1", "toPorts": []}),
        ("spec/redirectFrontend", {"addressMatcher": {"ip": "1.2.3", "toPorts": []}}),
        ("spec/skipRedirectFromBackend", "yes"),
    ],
)
def test_a_wrong_policy_is_refused(path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        CiliumLocalRedirectPolicy.model_validate(changed(path, value))


@pytest.mark.parametrize("port", ["1", "9", "99", "999", "9999", "10000", "59999", "65535"])
def test_every_port_is_taken(port: str) -> None:
    form = changed("spec/redirectBackend/toPorts/0/port", port)
    CiliumLocalRedirectPolicy.model_validate(form)


def test_unknown_fields_are_named_by_path() -> None:
    form = changed("spec/redirectBackend/toPorts/0/portt", 1)
    form["spec"]["redirectFrontend"]["serviceMatcher"]["ns"] = "x"
    form["spec"]["redirectBackend"]["localEndpointSelector"]["matchLabels"]["any"] = "label"
    form |= {"apiVersion": "cilium.io/v2", "kind": "CiliumLocalRedirectPolicy", "status": {}}
    form["sppec"] = {}
    assert CiliumLocalRedirectPolicy.model_validate(form).unknown_fields() == [
        "sppec",
        "spec.redirectFrontend.serviceMatcher.ns",
        "spec.redirectBackend.toPorts[0].portt",
    ]
    assert not CiliumLocalRedirectPolicy.model_validate(POLICY).unknown_fields()


def test_a_selector_means_what_it_says() -> None:
    form = {
        "matchLabels": {"app": "dns"},
        "matchExpressions": [
            {"key": "zone", "operator": "In", "values": ["a", "b"]},
            {"key": "old", "operator": "DoesNotExist"},
            {"key": "tier", "operator": "NotIn", "values": ["db"]},
            {"key": "rack", "operator": "Exists"},
        ],
    }
    selector = LabelSelector.model_validate(form).parsed()
    labels = {"app": "dns", "zone": "a", "rack": "1"}
    assert selector.matches(labels)
    for other in ({"zone": "c"}, {"old": ""}, {"tier": "db"}, {"app": "x"}):
        assert not selector.matches(labels | other)
    assert not selector.matches({"app": "dns", "zone": "a"})
    with pytest.raises(ValidationError, match="needs values"):
        LabelSelector.model_validate({"matchExpressions": [{"key": "a", "operator": "In"}]})


def test_node_configs_choose_nodes_by_labels() -> None:
    form = {
        "metadata": {"name": "big"},
        "spec": {
            "defaults": {"bpf-lb-map-max": "262144"},
            "nodeSelector": {"matchLabels": {"size": "big"}},
        },
    }
    spec = CiliumNodeConfig.model_validate(form).spec
    assert spec.node_selector.parsed().matches({"size": "big"})
    assert not spec.node_selector.parsed().matches({})

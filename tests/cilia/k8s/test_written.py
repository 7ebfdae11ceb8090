# SPDX-License-Identifier: Apache-2.0
"""What an object that was read tells of a write whose answer was lost."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from cilia.k8s import written
from cilia.k8s.crds import DEFINITIONS
from cilia.k8s.written import contains, is_deleted, without_version


def test_examples_run() -> None:
    result = doctest.testmod(written)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda kind: kind.name)
def test_what_the_server_adds_is_no_difference_and_what_it_lacks_is_one(definition: Any) -> None:
    form = definition.manifest()
    stored = definition.manifest()
    stored["metadata"] |= {"resourceVersion": "7", "uid": "u", "generation": 1}
    stored["spec"]["conversion"] = {"strategy": "None"}
    stored["spec"]["versions"][0]["default"] = True
    assert contains(stored, form)
    del stored["spec"]["versions"][0]["schema"]
    assert not contains(stored, form)


def test_an_object_is_compared_without_what_each_write_changes() -> None:
    read = {
        "metadata": {"name": "l", "uid": "u", "resourceVersion": "7", "managedFields": [{}]},
        "spec": {"holderIdentity": "a"},
    }
    stored = {"metadata": {"name": "l", "uid": "u", "resourceVersion": "8"}, "spec": read["spec"]}
    assert contains(stored, without_version(read))
    stored["metadata"] = {"name": "l", "uid": "another", "resourceVersion": "8"}
    assert not contains(stored, without_version(read))


@pytest.mark.parametrize(
    ("found", "deleted"),
    [
        (None, True),
        ({"metadata": {"uid": "u"}}, False),
        ({"metadata": {"uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}}, True),
        ({"metadata": {"uid": "its successor"}}, True),
    ],
)
def test_an_object_is_deleted_when_it_is_gone_going_or_another(found: Any, deleted: bool) -> None:
    assert (is_deleted("u", found) is not None) is deleted

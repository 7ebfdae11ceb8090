# SPDX-License-Identifier: Apache-2.0
"""Bytes of one object to events: whatever stands in them is at most that object's problem."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cilia.k8s.change_time import TimeSource
from cilia.k8s.errors import Garbage
from cilia.k8s.object_events import ObjectEvents
from cilia.k8s.objects import MOST_ERRORS, Service
from cilia.k8s.resource import HEAD, decoded, number
from cilia.k8s.watch import Invalid, Upsert
from tests.cilia.k8s.forms import service_form, with_metadata

KEY = ("Service", "test", "echo")


def events(form: Any, now: float = 7.0) -> list[Any]:
    data = form if isinstance(form, bytes) else json.dumps(form).encode()
    return list(ObjectEvents(Service).of_object(KEY, msgspec.Raw(data), now))


@pytest.mark.parametrize(
    "fields", [5, "x", [None], [{"time": 5}], [{"time": None}], [{"time": "9" * 5000}], [[]], {}]
)
def test_strange_managed_fields_are_no_reason_to_refuse_an_object(fields: object) -> None:
    [event] = events(with_metadata(service_form(), managedFields=fields))
    assert isinstance(event, Upsert)
    assert event.changed is not None
    assert event.changed.source is TimeSource.ARRIVAL


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 5000 + b"]" * 5000,
        b'{"metadata": {"name": "\xff"}}',
        b'{"metadata": {"name": "\\ud800"}}',
        b'{"metadata": {"name": 1e999}, "spec": {"ports": ' + b"9" * 5000 + b"}}",
        b"",
        b"null",
    ],
)
def test_bytes_that_are_no_object_are_a_problem(data: bytes) -> None:
    [event] = events(data)
    assert isinstance(event, Invalid)
    assert all(len(str(problem)) < 1000 for problem in event.problems)


def test_problems_of_an_object_are_of_a_bounded_number() -> None:
    [event] = events(service_form(ports=[{"port": 0}] * 10_000))
    assert isinstance(event, Invalid)
    assert len(event.problems) == MOST_ERRORS + 1


@pytest.mark.parametrize("text", ["", "x", "-1", "\u00b2", "9" * 5000])
def test_what_is_no_version_is_garbage(text: str) -> None:
    with pytest.raises(Garbage):
        number(text)


@pytest.mark.parametrize("data", [b"{", b"[" * 5000, b'{"metadata": {"name": "\xff"}}'])
def test_what_is_no_object_is_garbage(data: bytes) -> None:
    with pytest.raises(Garbage):
        decoded(HEAD, data)

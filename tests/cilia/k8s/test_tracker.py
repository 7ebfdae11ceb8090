# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import yaml

from cilia.k8s.objects import EndpointSlice, Service
from cilia.k8s.tracker import Conflict, NotFound, Tracker, TrackerError
from tests.cilia.k8s.forms import service_form, slice_form, with_metadata, yaml_of
from tests.cilia.k8s.test_store import spoken


@pytest.fixture
def tracker() -> Tracker:
    tracker = Tracker()
    tracker.add(yaml_of(service_form()))
    return tracker


def test_get_shows_what_was_written_with_sorted_keys(tracker: Tracker) -> None:
    assert tracker.get("v1.services", "test/echo") == (
        "apiVersion: v1\n"
        "kind: Service\n"
        "metadata:\n"
        "  name: echo\n"
        "  namespace: test\n"
        "spec:\n"
        "  clusterIP: 10.96.0.1\n"
        "  ports:\n"
        "  - name: http\n"
        "    port: 80\n"
        "    protocol: TCP\n"
    )


def test_versions_grow_and_the_uid_stays(tracker: Tracker) -> None:
    def shown() -> dict[str, str]:
        text = tracker.get("services", "test/echo", ["resource-version", "uid"])
        metadata: dict[str, str] = yaml.safe_load(text)["metadata"]
        return metadata

    first = shown()
    tracker.update(yaml_of(service_form(ip="10.96.0.2")))
    assert shown()["uid"] == first["uid"]
    assert int(shown()["resourceVersion"]) > int(first["resourceVersion"])
    tracker.add(yaml_of(with_metadata(service_form(), uid="mine")))
    assert shown()["uid"] == "mine"


def test_strict_update_wants_the_version_that_is_there(tracker: Tracker) -> None:
    stale = yaml_of(with_metadata(service_form(ip="10.96.0.2"), resourceVersion="77"))
    with pytest.raises(Conflict, match="resourceVersion 1"):
        tracker.update(stale, strict=True)
    assert "10.96.0.1" in tracker.get("services", "test/echo")
    tracker.update(stale)
    current = with_metadata(service_form(ip="10.96.0.3"), resourceVersion="2")
    tracker.update(yaml_of(current), strict=True)
    assert "10.96.0.3" in tracker.get("services", "test/echo")


def test_what_is_not_there_is_an_error(tracker: Tracker) -> None:
    other = yaml_of(service_form("other"))
    for request in (tracker.update, tracker.delete):
        with pytest.raises(NotFound, match="Service test/other"):
            request(other)
    with pytest.raises(NotFound):
        tracker.get("services", "test/other")


def test_what_is_no_object_is_an_error(tracker: Tracker) -> None:
    for data in (b"", yaml_of(service_form("a"), service_form("b")), b"kind: [", b"kind: Foo"):
        with pytest.raises(TrackerError):
            tracker.add(data)
    with pytest.raises(TrackerError, match=r"spec\.clusterIP"):
        tracker.add(yaml_of(service_form(ip="x")))


def test_resources_are_found_by_part_of_their_name(tracker: Tracker) -> None:
    assert tracker.get("v1.serv", "test/echo") == tracker.get("v1.services", "test/echo")
    for text in ("v1.", "nothing"):
        with pytest.raises(TrackerError):
            tracker.list_objects(text)
    assert "discovery.k8s.io.v1.endpointslices" in tracker.resources()


def test_list_is_by_name_and_namespace(tracker: Tracker) -> None:
    tracker.add(yaml_of(service_form("a")))
    tracker.add(yaml_of(service_form("z", namespace="other")))

    def listed(namespace: str) -> list[str]:
        objects = yaml.safe_load(tracker.list_objects("v1.services", namespace))
        return [obj["metadata"]["name"] for obj in objects]

    assert listed("test") == ["a", "echo"]
    assert listed("") == ["z", "a", "echo"]


def test_summary_is_in_order_of_first_appearance(tracker: Tracker) -> None:
    tracker.add(yaml_of(slice_form()))
    tracker.add(yaml_of(service_form("b")))
    assert tracker.summary() == ("*:\n- v1.services: 2\n- discovery.k8s.io.v1.endpointslices: 1\n")


async def test_readers_follow(tracker: Tracker) -> None:
    reader = tracker.watch(Service, EndpointSlice)
    await anext(reader)
    tracker.add(yaml_of(slice_form()))
    tracker.delete(yaml_of(service_form()))
    assert spoken(await anext(reader)) == ["+echo-1", "-echo"]


async def test_resync_makes_readers_list_again(tracker: Tracker) -> None:
    reader = tracker.watch(Service)
    await anext(reader)
    tracker.resync("v1.services", [yaml_of(service_form("new"))])
    assert spoken(await anext(reader)) == ["[Service", "+new", "Service]"]
    with pytest.raises(TrackerError, match="EndpointSlice"):
        tracker.resync("v1.services", [yaml_of(slice_form())])
    tracker.resync("v1.services")
    assert tracker.summary() == "*:\n"

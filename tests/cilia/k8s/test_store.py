# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import threading

from cilia.k8s.objects import EndpointSlice, Service
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Delete, Event, Invalid, Listed, Listing, Problem, Unread, Upsert
from tests.cilia.k8s.forms import endpoint_slice, service

SERVICE_KEY = ("Service", "test", "echo")


def spoken(events: list[Event]) -> list[str]:
    """Events as short text."""
    texts = []
    for event in events:
        match event:
            case Upsert():
                texts.append(f"+{event.obj.metadata.name}")
            case Delete():
                texts.append(f"-{event.key[2]}")
            case Listing():
                texts.append(f"[{event.kind}")
            case Listed():
                texts.append(f"{event.kind}]")
            case Unread():
                texts.append(f"{event.kind}...")
            case Invalid():
                texts.append(f"!{event.origin}")
    return texts


async def test_a_reader_gets_its_kinds_and_an_end_of_the_list_each() -> None:
    store = ObjectStore()
    store.publish([Upsert(service()), Upsert(endpoint_slice())])
    reader = store.watch(Service, EndpointSlice)
    assert spoken(await anext(reader)) == ["[EndpointSlice", "+echo-1", "[Service", "+echo"]
    store.set_complete()
    assert spoken(await anext(reader)) == ["EndpointSlice]", "Service]"]
    only_services = store.watch(Service)
    assert spoken(await anext(only_services)) == ["[Service", "+echo", "Service]"]
    store.publish([Delete(("EndpointSlice", "test", "echo-1")), Delete(SERVICE_KEY)])
    assert spoken(await anext(only_services)) == ["-echo"]


async def test_readers_are_told_that_more_cannot_be_read_now() -> None:
    store = ObjectStore()
    reader = store.watch(Service)
    await anext(reader)
    store.publish([Upsert(service("a"))])
    store.set_partly()
    assert spoken(await anext(reader)) == ["+a", "Service..."]
    late = store.watch(Service)
    assert spoken(await anext(late)) == ["[Service", "+a", "Service..."]
    store.publish([Upsert(service("b"))])
    store.set_complete()
    for each in (reader, late):
        assert spoken(await anext(each)) == ["+b", "Service]"]
    assert spoken(await anext(store.watch(Service)))[-1] == "Service]"


async def test_what_comes_while_a_reader_is_busy_is_one_batch() -> None:
    store = ObjectStore()
    store.set_complete()
    reader = store.watch(Service)
    await anext(reader)
    store.publish([Upsert(service("a"))])
    store.publish([Upsert(service("b")), Delete(("Service", "test", "a"))])
    assert spoken(await anext(reader)) == ["+a", "+b", "-a"]


async def test_relist_sends_the_kind_again_and_not_what_went() -> None:
    store = ObjectStore()
    store.publish([Upsert(service("a")), Upsert(service("b")), Upsert(endpoint_slice())])
    store.set_complete()
    reader = store.watch(Service, EndpointSlice)
    await anext(reader)
    store.relist("Service", [service("b")])
    assert spoken(await anext(reader)) == ["[Service", "+b", "Service]"]
    assert store.get(("Service", "test", "a")) is None


async def test_problems_are_for_readers_without_kinds() -> None:
    store = ObjectStore()
    store.publish([Invalid("f", (Problem("bad"),)), Invalid("g", (Problem("bad"),))])
    store.publish([Invalid("g")])
    store.set_complete()
    services, problems = store.watch(Service), store.watch()
    assert spoken(await anext(services)) == ["[Service", "Service]"]
    assert spoken(await anext(problems)) == ["[Problem", "!f", "Problem]"]
    store.publish([Upsert(service()), Invalid("f")])
    assert spoken(await anext(services)) == ["+echo"]
    assert spoken(await anext(problems)) == ["!f"]


async def test_a_reader_is_woken_from_another_thread() -> None:
    store = ObjectStore()
    store.set_complete()
    reader = store.watch(Service)
    await anext(reader)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    thread = threading.Thread(target=store.publish, args=([Upsert(service())],))
    thread.start()
    async with asyncio.timeout(5):
        assert spoken(await waiting) == ["+echo"]
    thread.join()


async def test_a_reader_that_left_is_forgotten() -> None:
    store = ObjectStore()
    reader = store.watch(Service)
    await anext(reader)
    await reader.aclose()  # type: ignore[attr-defined]
    assert store._readers == []

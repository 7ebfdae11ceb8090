# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from cilia.k8s.manifest_files import FileContent, Manifests, decode_file
from cilia.k8s.objects import K8sObject, ObjectKey
from cilia.k8s.watch import Delete, Event, Invalid, Upsert
from tests.cilia.k8s.forms import service_form, slice_form, yaml_of


class Follower:
    """What a reader of the events believes."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, K8sObject] = {}
        self.problems: dict[str, list[str]] = {}

    def take(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Upsert():
                    self.objects[event.obj.key] = event.obj
                case Delete():
                    del self.objects[event.key]
                case Invalid():
                    texts = [f"{p.name} {p.field} {p.message}".strip() for p in event.problems]
                    self.problems[event.origin] = texts

    @property
    def names(self) -> list[str]:
        return sorted(name for _, _, name in self.objects)

    def complaints(self, file: str) -> list[str]:
        return self.problems.get(f"manifests:{file}", [])


def ip_of(obj: K8sObject) -> str:
    ip: str = obj.spec.cluster_ip  # type: ignore[attr-defined]
    return ip


def test_objects_of_all_documents_and_lists() -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": [service_form("b"), slice_form("c")]}
    typed = {
        "apiVersion": "v1",
        "kind": "ServiceList",
        "items": [{"metadata": {"name": "d"}, "spec": {}}],
    }
    content = decode_file("x.yaml", yaml_of(service_form("a"), items, typed))
    assert [key[2] for key in content.objects] == ["a", "b", "c", "d"]
    assert content.problems == ()
    again = decode_file("x.json", orjson.dumps(items))
    assert [key[2] for key in again.objects] == ["b", "c"]


def test_problem_names_file_document_object_and_field_in_a_list() -> None:
    items = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [service_form("a"), service_form("b", "x")],
    }
    [problem] = decode_file("x.yaml", yaml_of(service_form("c"), items)).problems
    assert (problem.file, problem.document, problem.kind, problem.name, problem.field) == (
        "x.yaml",
        2,
        "Service",
        "b",
        "items[1].spec.clusterIP",
    )


def test_a_broken_document_leaves_its_object_and_its_neighbours_in_force() -> None:
    follower, manifests = Follower(), Manifests()
    follower.take(
        manifests.put(
            "x.yaml", decode_file("x.yaml", yaml_of(service_form("a"), service_form("b")))
        )
    )
    edited = yaml_of(service_form("a", "10.96.0.9"), service_form("b", "none.of.these"))
    follower.take(manifests.put("x.yaml", decode_file("x.yaml", edited)))
    assert follower.names == ["a", "b"]
    assert {ip_of(obj) for obj in follower.objects.values()} == {"10.96.0.9", "10.96.0.1"}
    assert follower.complaints("x.yaml") == [
        "b spec.clusterIP 'none.of.these' is not an IP address"
    ]


def test_a_document_that_went_while_another_is_broken_goes() -> None:
    follower, manifests = Follower(), Manifests()
    both = yaml_of(service_form("a"), service_form("b"))
    follower.take(manifests.put("x.yaml", decode_file("x.yaml", both)))
    follower.take(manifests.put("x.yaml", decode_file("x.yaml", yaml_of(service_form("b", "no")))))
    assert follower.names == ["b"]


def test_everything_stays_when_a_document_does_not_say_what_it_is() -> None:
    follower, manifests = Follower(), Manifests()
    both = yaml_of(service_form("a"), service_form("b"))
    follower.take(manifests.put("x.yaml", decode_file("x.yaml", both)))
    broken = yaml_of(service_form("c")) + b"---\nkind: Service\nspec: [\n"
    follower.take(manifests.put("x.yaml", decode_file("x.yaml", broken)))
    assert follower.names == ["a", "b", "c"]
    # Once the file is whole again, what it no longer has goes, and the problem with it.
    follower.take(manifests.put("x.yaml", decode_file("x.yaml", yaml_of(service_form("c")))))
    assert follower.names == ["c"]
    assert follower.complaints("x.yaml") == []


def test_the_first_of_two_files_keeps_an_object_and_the_second_takes_over() -> None:
    follower, manifests = Follower(), Manifests()
    follower.take(
        manifests.put("b.yaml", decode_file("b.yaml", yaml_of(service_form("s", "1.1.1.1"))))
    )
    events = manifests.put("a.yaml", decode_file("a.yaml", yaml_of(service_form("s", "2.2.2.2"))))
    assert [type(event) for event in events] == [Invalid]
    follower.take(events)
    assert follower.complaints("a.yaml") == ["s  is in b.yaml already, which is used"]
    follower.take(manifests.remove("b.yaml"))
    assert [ip_of(obj) for obj in follower.objects.values()] == ["2.2.2.2"]
    assert follower.complaints("a.yaml") == []


def test_an_object_twice_in_a_file_is_a_problem_and_the_first_is_used() -> None:
    data = yaml_of(service_form("s", "1.1.1.1"), service_form("s", "2.2.2.2"))
    content = decode_file("a.yaml", data)
    assert [ip_of(obj) for obj in content.objects.values()] == ["1.1.1.1"]
    assert [(p.document, p.name) for p in content.problems] == [(2, "s")]


def test_what_did_not_change_is_not_said_again() -> None:
    manifests = Manifests()
    content = decode_file("a.yaml", yaml_of(service_form("s"), slice_form("t")))
    assert len(manifests.put("a.yaml", content)) == 2
    again = decode_file("a.yaml", yaml_of(service_form("s"), slice_form("t")))
    assert manifests.put("a.yaml", again) == []


def test_a_file_that_cannot_be_read_keeps_its_objects() -> None:
    follower, manifests = Follower(), Manifests()
    follower.take(manifests.put("a.yaml", decode_file("a.yaml", yaml_of(service_form("s")))))
    follower.take(manifests.put("a.yaml", FileContent(keep_all=True)))
    assert follower.names == ["s"]


def test_a_renamed_object_is_there_before_its_predecessor_goes() -> None:
    manifests = Manifests()
    manifests.put("a.yaml", decode_file("a.yaml", yaml_of(service_form("old"))))
    events = manifests.put("a.yaml", decode_file("a.yaml", yaml_of(service_form("new"))))
    assert [type(event) for event in events] == [Upsert, Delete]


file_names = st.sampled_from(["a.yaml", "b.yaml", "c.yaml"])
contents = st.dictionaries(st.sampled_from("xyz"), st.integers(1, 3), max_size=3)


@given(st.lists(st.tuples(file_names, st.none() | contents), max_size=12))
def test_followers_have_what_the_first_file_of_each_object_says(
    steps: list[tuple[str, dict[str, int] | None]],
) -> None:
    follower, manifests = Follower(), Manifests()
    claims: dict[str, dict[str, int]] = {}  # object -> file -> value, in order of claiming
    for file, content in steps:
        if content is None:
            follower.take(manifests.remove(file))
        else:
            forms = [service_form(name, f"1.1.1.{n}") for name, n in content.items()]
            data = yaml_of(*forms) if forms else b""
            follower.take(manifests.put(file, decode_file(file, data)))
        for name in "xyz":
            if content and name in content:
                claims.setdefault(name, {})[file] = content[name]
            else:
                claims.get(name, {}).pop(file, None)
        expected = {name: next(iter(files.values())) for name, files in claims.items() if files}
        found = {key[2]: int(ip_of(obj)[-1]) for key, obj in follower.objects.items()}
        assert found == expected
        waiting = {f for files in claims.values() for f in list(files)[1:]}
        assert {f for f in ("a.yaml", "b.yaml", "c.yaml") if follower.complaints(f)} == waiting


def test_nothing_is_remembered_of_a_file_that_went() -> None:
    manifests = Manifests()
    empty = {name: list(value) for name, value in vars(manifests).items() if name != "_origin"}
    manifests.put("a.yaml", decode_file("a.yaml", b"kind: Service\n"))
    manifests.remove("a.yaml")
    assert {name: list(getattr(manifests, name)) for name in empty} == empty

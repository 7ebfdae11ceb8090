# SPDX-License-Identifier: Apache-2.0
"""Manifest files that cannot be decoded, or that cost much to refuse: they harm nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cilia.k8s.documents import read_yaml
from cilia.k8s.manifest_files import MOST_PROBLEMS, decode_file
from cilia.k8s.manifests import ManifestSource
from cilia.k8s.objects import Service
from tables.selectors import parse_selector
from tests.cilia.k8s.forms import service_form, yaml_of
from tests.cilia.k8s.reader import Reader

HEAD = b"apiVersion: v1\nkind: Service\nmetadata: {name: bad}\n"
UNDECODABLE = {
    "tag.yaml": HEAD + b"spec: {ports: [{port: !!int eighty}]}\n",
    "digits.yaml": HEAD + b"spec: {ports: [{port: " + b"9" * 4301 + b"}]}\n",
    "depth.json": b'{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad"}, "spec": '
    + b"[" * 1000
    + b"]" * 1000
    + b"}",
}


@pytest.mark.parametrize("name", UNDECODABLE)
def test_a_file_is_a_problem_when_it_cannot_be_decoded(name: str) -> None:
    content = decode_file(name, UNDECODABLE[name])
    assert content.keep_all or content.keep
    assert [problem.file for problem in content.problems] == [name]


async def restarted(source: ManifestSource) -> None:
    """Run a source as its job does: again after an exception."""
    while True:
        with suppress(ValueError, RecursionError):
            await source.run()


@pytest.mark.parametrize("name", UNDECODABLE)
async def test_files_are_served_when_another_one_cannot_be_decoded(
    tmp_path: Path, name: str
) -> None:
    for good in ("a", "z"):
        (tmp_path / f"{good}.yaml").write_bytes(yaml_of(service_form(good)))
    (tmp_path / name).write_bytes(UNDECODABLE[name])
    source = ManifestSource(tmp_path)
    reader = Reader(source, Service)
    running = asyncio.create_task(restarted(source))
    await reader.listed()
    for task in (running, reader.task):
        task.cancel()
    assert reader.held() == {"a", "z"}


def thread_s(work: object, *args: object) -> float:
    """Return the processor time of the fastest of three calls, in seconds."""
    assert callable(work)
    times = []
    for _ in range(3):
        began = time.thread_time()
        with suppress(ValueError):
            work(*args)
        times.append(time.thread_time() - began)
    return min(times)


def broken_service(annotations: int) -> bytes:
    lines = "".join(f"    key{n}.example.com/x: value\n" for n in range(annotations))
    head = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n"
    return f"{head}{lines}spec:\n  ports: [{{port: 80}}\n".encode()


def test_a_broken_document_costs_little_when_its_metadata_has_more_lines() -> None:
    few, more = (thread_s(read_yaml, broken_service(lines)) for lines in (5, 8))
    assert more < 8 * few


def test_a_selector_costs_its_length_when_it_is_all_commas() -> None:
    short, long = (thread_s(parse_selector, "," * count) for count in (1000, 16_000))
    assert long < 64 * short


def aliases(levels: int) -> bytes:
    lines = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, levels)]
    first = "l0: &l0 [x, x, x, x, x, x, x, x, x]\n"
    return HEAD + f"{first}{''.join(lines)}spec: *l{levels - 1}\n".encode()


# Where time once grew faster than the file: a form of n parts, refused or not.
COSTLY: dict[str, Callable[[int], bytes]] = {
    "indented lines": broken_service,
    "aliases": lambda n: aliases(2 + n // 1000),
    "depth by aliases": lambda n: (
        HEAD
        + b"a0: &a0 [x]\n"
        + b"".join(b"a%d: &a%d [[[[*a%d]]]]\n" % (i, i, i - 1) for i in range(1, n))
    ),
    "merge keys": lambda n: HEAD + b"a: &a {b: c}\nspec: {<<: [" + b"*a, " * n + b"*a]}\n",
    "digits": lambda n: HEAD + b"spec: {ports: [{port: " + b"9" * n + b"}]}\n",
    "blanks": lambda n: HEAD + b"spec:" + b" " * n + b"[\n" + b" " * n,
    "dashes": lambda n: b"---\n" * n + b"-" * n,
    "documents": lambda n: b"---\na: [\n" * (n // 10),
    "one long key": lambda n: HEAD + b"? " + b"k" * n + b"\n: x\nspec: {" + b"k" * n + b": 1}",
    "quotes": lambda n: HEAD + b"spec: '" + b"''" * n,
    "flow": lambda n: HEAD + b"spec: " + b"{a: " * 60 + b"[1,2]," * n,
    "name": lambda n: b"kind: Service\nmetadata:\n  name: " + b"x" * n + b"\nspec: [",
}


@pytest.mark.parametrize("form", COSTLY)
def test_time_grows_with_the_file_and_no_faster(form: str) -> None:
    make = COSTLY[form]
    few, many = make(2_000), make(16_000)
    spent = [thread_s(decode_file, "x.yaml", data) for data in (few, many)]
    assert spent[1] < max(0.05, spent[0] * 3 * len(many) / len(few))
    for problem in decode_file("x.yaml", many).problems:
        assert len(str(problem)) < 1_000


def test_aliases_are_refused_when_they_stand_for_too_much() -> None:
    content = decode_file("x.yaml", aliases(9))
    assert content.keep_all
    assert "aliases stand for more than 10000 values" in content.problems[0].message
    assert not decode_file("x.yaml", yaml_of(service_form())).problems


def test_problems_of_a_file_are_of_a_bounded_number() -> None:
    content = decode_file("x.yaml", b"---\nkind: Service\n" * 1_000)
    assert len(content.problems) == MOST_PROBLEMS + 1
    assert content.problems[-1].message == "has 900 more problems"

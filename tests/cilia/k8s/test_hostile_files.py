# SPDX-License-Identifier: Apache-2.0
"""Manifest files that cannot be decoded, or that cost much to refuse: they harm nothing else."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cilia.k8s.documents import read_yaml
from cilia.k8s.manifest_files import decode_file
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


@pytest.mark.xfail(
    strict=True,
    raises=(ValueError, RecursionError),
    reason="a file that cannot be decoded raises an exception of the decoder",
)
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


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the list is complete without the files that were read together with a broken one",
)
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


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the time to refuse a document grows fourfold with each line of its metadata",
)
def test_a_broken_document_costs_little_when_its_metadata_has_more_lines() -> None:
    few, more = (thread_s(read_yaml, broken_service(lines)) for lines in (5, 8))
    assert more < 8 * few


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the time to read a selector grows with the square of its commas",
)
def test_a_selector_costs_its_length_when_it_is_all_commas() -> None:
    short, long = (thread_s(parse_selector, "," * count) for count in (1000, 16_000))
    assert long < 64 * short

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from cilia.k8s.objects import EndpointSlice, Service
from cilia.k8s.state_file import state_file_source
from tests.cilia.k8s.forms import Form, service_form, slice_form
from tests.cilia.k8s.test_manifests import Reader

pytestmark = pytest.mark.usefixtures("short_grace")


def bare(form: Form) -> Form:
    """A list says what its items are."""
    return {k: v for k, v in form.items() if k not in ("kind", "apiVersion")}


def state(*services: Form, endpoints: tuple[Form, ...] = ()) -> str:
    return yaml.safe_dump({"services": list(services), "endpoints": list(endpoints)})


async def test_the_file_is_followed_and_kept_when_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "state.yaml"
    path.write_text(state(bare(service_form("a")), endpoints=(slice_form("s"),)))
    (tmp_path / "other.yaml").write_text(state(service_form("nobody")))
    source = state_file_source(path, 0.02)
    reader, problems = Reader(source.watch(Service, EndpointSlice)), Reader(source.watch())
    task = asyncio.create_task(source.run())
    await reader.until(lambda: reader.listed)
    assert reader.names == ["a", "s"]
    path.unlink()
    await problems.until(lambda: bool(problems.complaints))
    assert reader.names == ["a", "s"]
    path.write_text(state(service_form("b")))
    await reader.until(lambda: reader.names == ["b"])
    await problems.until(lambda: not problems.complaints)
    path.write_text("")
    await reader.until(lambda: reader.names == [])
    for running in (task, reader.task, problems.task):
        running.cancel()
    await asyncio.gather(task, reader.task, problems.task, return_exceptions=True)


async def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.yaml"
    text = state(service_form("a"), service_form("b", "x"), endpoints=(service_form("c", "y"),))
    path.write_text(text + "more: 1\n")
    source = state_file_source(path, 0.0)
    reader, problems = Reader(source.watch(Service)), Reader(source.watch())
    task = asyncio.create_task(source.run())
    await problems.until(lambda: problems.listed)
    await reader.until(lambda: reader.listed)
    assert reader.names == ["a"]
    assert len(problems.complaints) == 3
    for running in (task, reader.task, problems.task):
        running.cancel()
    await asyncio.gather(task, reader.task, problems.task, return_exceptions=True)


def test_a_name_that_says_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.yaml"):
        state_file_source(tmp_path / "state.toml")

# SPDX-License-Identifier: Apache-2.0
"""Fixtures: one API server for all tests, and a namespace of its own for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from .apiserver import ApiServer
from .golden_cluster import prepare, settings

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Shared: a test leaves nothing cluster-wide behind, and kills only a server of its own."""
    with ApiServer(tmp_path_factory.mktemp("api-server")) as server:
        yield server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Another one, whose addresses of Services are those of the golden scripts. Its tests may stop
    and start it; each leaves it without objects."""
    with ApiServer(tmp_path_factory.mktemp("server"), settings()) as server:
        prepare(server)
        yield server


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """A new namespace. It stays: no controller runs that would empty it."""
    name = f"test-{next(_numbers)}"
    api_server.post("/api/v1/namespaces", {"metadata": {"name": name}})
    return name

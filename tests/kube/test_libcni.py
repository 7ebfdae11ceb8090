# SPDX-License-Identifier: Apache-2.0
"""The library that container runtimes call plugins by, with our plugin, in all its versions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from cilia.endpoints.cni import conflist
from cilia.endpoints.cni.errors import CNIError, Code
from cilia.endpoints.cni.forwarder import NAME, build
from cilia.endpoints.cni.requests import Command, Request
from cilia.endpoints.cni.results import VERSIONS, parsed
from tests.cilia.endpoints.cni.recorder import RESULT, Recorder, serving
from tests.cilia.endpoints.cni.runtime import NETNS

from .assets import asset

ATTACHMENT = ("0f3c", NETNS, "eth0", "K8S_POD_NAME=web")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plugins")
    build(directory / NAME)
    return directory


class Library(NamedTuple):
    """Runs commands of one list."""

    plugins: Path
    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "cni.sock"

    def write(self, **fields: Any) -> None:
        form = json.loads(conflist.rendered(self.socket)) | fields
        (self.directory / "list").write_text(json.dumps(form))

    def call(self, command: str, *words: str) -> dict[str, Any]:
        """Return what the library says: `Version`, and `Result` or `Error` and `Code`."""
        cache = str(self.directory / "cache")
        places = [str(self.directory / "list"), str(self.plugins), cache]
        done = subprocess.run(
            [asset("libcni"), *places, command, *words], capture_output=True, check=False
        )
        assert done.stderr == b""
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    async def ask(self, command: str, *words: str) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(lambda: self.call(command, *words))


@pytest.fixture
def plugin() -> Recorder:
    return Recorder()


@pytest.fixture
def library(plugins: Path, tmp_path: Path) -> Library:
    return Library(plugins, tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_container_comes_and_goes(library: Library, plugin: Recorder, version: str) -> None:
    library.write(cniVersion=version, cniVersions=[version])
    said = {"Version": version}
    expected = ["ADD"]
    async with serving(library.socket, plugin):
        assert await library.ask("VERSION") == said
        added = await library.ask("ADD", *ATTACHMENT)
        result = parsed(added["Result"])
        checked = await library.ask("CHECK", *ATTACHMENT)
        if version == "0.3.1":
            assert "does not support" in checked["Error"]
        else:
            assert checked == said
            expected.append("CHECK")
            assert plugin.requests[-1].prev_result == result
        assert await library.ask("STATUS") == said
        assert await library.ask("GC", "0f3c", "", "eth0") == said
        if version == "1.1.0":
            expected += ["STATUS", "GC"]
            assert result == RESULT
            assert plugin.requests[-1].valid_attachments == {("cilia", "0f3c", "eth0")}
        assert await library.ask("DEL", *ATTACHMENT) == said
        assert await library.ask("DEL", *ATTACHMENT) == said
    assert plugin.commands == [*expected, "DEL", "DEL"]
    assert {request.config.cni_version for request in plugin.requests} == {version}
    assert plugin.requests[0].args == {"K8S_POD_NAME": "web"}
    assert [ip.address for ip in result.ips] == ["10.0.0.5/32"]


async def test_gc_deletes_what_the_library_knows_and_is_not_valid(
    library: Library, plugin: Recorder
) -> None:
    library.write()
    async with serving(library.socket, plugin):
        assert "Error" not in await library.ask("ADD", *ATTACHMENT)
        assert "Error" not in await library.ask("GC")
    assert plugin.commands == ["ADD", "DEL", "GC"]
    assert plugin.requests[-1].valid_attachments == frozenset()


async def test_the_newest_version_is_used(library: Library, plugin: Recorder) -> None:
    library.write()
    async with serving(library.socket, plugin):
        assert (await library.ask("ADD", *ATTACHMENT))["Version"] == "1.1.0"


async def test_errors_come_with_their_codes(library: Library, plugin: Recorder) -> None:
    library.write()

    async def refuse(_: Request) -> None:
        raise CNIError(Code.TRY_AGAIN_LATER, 'no "addresses"')

    async def fail(_: Request) -> None:
        raise KeyError

    async with serving(library.socket, plugin):
        for work, code, sentence in ((refuse, 11, 'no "addresses"'), (fail, 999, "KeyError")):
            plugin.work = dict.fromkeys(Command, work)
            for command in ("ADD", "STATUS", "GC", "DEL"):
                words = ATTACHMENT if command in ("ADD", "DEL") else ()
                answer = await library.ask(command, *words)
                assert (answer["Code"], sentence in answer["Error"]) == (code, True), answer


def test_codes_without_an_agent(library: Library) -> None:
    library.write()
    assert library.call("ADD", *ATTACHMENT)["Code"] == 11
    assert library.call("GC")["Code"] == 11
    assert library.call("STATUS")["Code"] == 50
    assert "Error" not in library.call("DEL", *ATTACHMENT)
    assert "Error" not in library.call("VERSION")
    assert (library.directory / "cni-queue" / "cilia:0f3c:eth0.delete").exists()


def test_a_namespace_that_has_gone_is_named(library: Library) -> None:
    library.write()
    answer = library.call("ADD", "0f3c", "/run/netns/gone", "eth0")
    assert (answer["Code"], "CNI_NETNS is /run/netns/gone" in answer["Error"]) == (4, True)

# SPDX-License-Identifier: Apache-2.0
"""Records are whole, whatever happens while one is written."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cilia.k8s.api_servers import Server, Servers
from cilia.linux.records import (
    BROKEN,
    OTHER_NAMES,
    make_directory,
    name_of_record,
    read_record,
    write_record,
)
from cilia.regular_files import MOST_BYTES
from tests.full_disk import small_disk


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of one page, with a record in it and no room for another."""
    directory = tmp_path / "full"
    with small_disk(directory) as fill:
        write_record(directory / "record.json", ["kept"])
        fill()
        yield directory


def test_a_record_is_read_back_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert read_record(path, list[str]) is None
    write_record(path, ["a", "b"])
    assert read_record(path, list[str]) == ["a", "b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b'["cut', b"{}", b"\xff\xfe", b"[1]"])
def test_a_broken_record_is_set_aside_and_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with capture_logs() as logs:
        assert read_record(path, list[str]) is None
    assert path.with_name(path.name + BROKEN).read_bytes() == content
    assert not path.exists()
    assert [line["event"] for line in logs] == ["a broken record was set aside"]


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "loop", "too large"])
def test_what_is_no_file_is_set_aside_and_nobody_waits_for_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "record.json"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "directory":
            (path / "below").mkdir(parents=True)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "socket":
            listener.bind(str(path))
        else:
            path.touch()
            os.truncate(path, MOST_BYTES + 1)
        assert read_record(path, list[str]) is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json" + BROKEN]
    write_record(path, ["new"])
    assert read_record(path, list[str]) == ["new"]


def test_what_cannot_be_set_aside_is_told_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"{")
    for ending in ("", *(f".{number}" for number in range(1, OTHER_NAMES + 1))):
        (tmp_path / f"record.json{ending}{BROKEN}" / "below").mkdir(parents=True)
    with capture_logs() as logs:
        assert read_record(path, list[str]) is None
    assert [line["log_level"] for line in logs] == ["error"]


def test_a_directory_that_has_the_name_of_what_is_set_aside_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    path = tmp_path / "record.json"
    (path / "now").mkdir(parents=True)
    (tmp_path / f"record.json{BROKEN}" / "before").mkdir(parents=True)
    assert read_record(path, list[str]) is None
    aside = tmp_path / f"record.json.1{BROKEN}"
    assert [entry.name for entry in aside.iterdir()] == ["now"]
    write_record(path, ["new"])
    assert read_record(path, list[str]) == ["new"]
    assert {name_of_record(entry.name) for entry in tmp_path.iterdir()} == {"record.json"}


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("7.json", "7.json"),
        ("7.json.broken", "7.json"),
        ("7.json.2.broken", "7.json"),
        (".7.json.new", "7.json"),
        ("cgroupv2", "cgroupv2"),
        ("mine.txt.2", "mine.txt.2"),
    ],
)
def test_files_beside_a_record_tell_its_name(name: str, record: str) -> None:
    assert name_of_record(name) == record


@pytest.mark.root
def test_a_full_disk_leaves_the_old_record(full: Path) -> None:
    path = full / "record.json"
    with pytest.raises(OSError, match="No space"):
        write_record(path, ["x" * 100_000])
    assert read_record(path, list[str]) == ["kept"]
    assert sorted(entry.name for entry in full.iterdir()) == ["record.json", "rest"]


@pytest.mark.root
def test_api_servers_are_followed_when_the_disk_is_full(full: Path) -> None:
    servers = Servers([Server("192.0.2.1", 6443)], full / ("s" * 200))
    many = [Server(f"192.0.2.{n}", 6443) for n in range(2, 254)]
    with capture_logs() as logs:
        servers._replace(many)
    assert servers.known[-1] == many[-1]
    assert [line["event"] for line in logs] == ["addresses of API servers are not kept"]


@pytest.mark.parametrize("kind", ["file", "link", "loop"])
def test_what_has_the_name_of_a_directory_of_records_is_set_aside(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "endpoints"
    match kind:
        case "file":
            path.touch()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "loop":
            path.symlink_to(path.name)
    for _ in range(2):
        make_directory(path)
        assert path.is_dir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["endpoints", "endpoints.broken"]

# SPDX-License-Identifier: Apache-2.0
"""An archive of a node: what is in it is what the live commands show, within its size, as far as it
could be had."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cilia.__main__ import cli
from cilia.cli.sysdump.archive import ArchiveError, Reader, Writer
from cilia.cli.sysdump.parts import redacted
from tests.statedb.serving import served
from tests.statedb_application import Author, Book, Library


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    library = Library(["--history=20"])
    with library.db.write_txn(library.books) as wtxn:
        for number in range(1000):
            library.books.insert(wtxn, Book(f"Book {number}", 1900 + number, Author("Joyce")))
    with served(library.db, tmp_path / "s") as path:
        yield path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def dumped(socket: str, path: Path, *flags: str) -> Path:
    # A bpffs without an instance of ours: the kernel's parts are missing, and named.
    where = ("--output", str(path), "--bpf-root", str(path.parent))
    result = run("--socket", socket, "sysdump", *where, *flags)
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.parametrize("flags", [(), ("-o", "json"), ("-o", "yaml"), ("--columns", "Year,Title")])
def test_an_archived_table_is_shown_as_a_live_one(
    socket: str, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    path = dumped(socket, tmp_path / "a.tar.gz")
    live = run("--socket", socket, "db", "show", "books", *flags)
    archived = run("db", "show", "books", "--from", str(path), *flags)
    assert archived.exit_code == 0, archived.output
    assert archived.stdout == live.stdout and "Book 999" in live.stdout


def test_only_its_owner_may_read_an_archive_and_none_is_overwritten(
    socket: str, tmp_path: Path
) -> None:
    path = dumped(socket, tmp_path / "a.tar.gz")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = run("--socket", socket, "sysdump", "--output", str(path))
    assert again.exit_code == 1 and "File exists" in again.output


def test_without_an_agent_the_archive_says_what_is_missing(tmp_path: Path) -> None:
    path = dumped("/nowhere.sock", tmp_path / "a.tar.gz")
    reader = Reader(path)
    assert "no agent answers on /nowhere.sock" in reader.error("status.json")
    assert b"cilia" in b"".join(reader.lines("versions.json"))
    reader.close()
    shown = run("db", "show", "books", "--from", str(path))
    assert shown.exit_code == 1 and "has no table books: it has none" in shown.output


def test_what_is_beyond_the_size_is_cut_and_said(socket: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = Writer(file, 10, {"node": "n"})
    assert writer.add("first", iter([b"12345", b"678"]), ()) == ""
    assert "has reached its size" in writer.add("second", iter([b"ab\n", b"cd"]), ())
    assert "has reached its size" in writer.add("third", iter([b"e"]), ())
    writer.close()
    path = tmp_path / "a.tar.gz"
    path.write_bytes(file.getvalue())
    reader = Reader(path)
    assert [part["bytes"] for part in reader.index["parts"]] == [8, 2, 0]
    assert reader.error("first") == "" and reader.error("third")
    reader.close()


def test_a_part_that_breaks_off_is_kept_as_far_as_it_came(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"head\nhalf of a li"
        raise OSError("gone")

    file = io.BytesIO()
    writer = Writer(file, 1000, {})
    assert writer.add("part", broken(), (OSError,)) == "gone"
    writer.close()
    path = tmp_path / "a.tar.gz"
    path.write_bytes(file.getvalue())
    reader = Reader(path)
    assert list(reader.lines("part")) == [b"head"]
    reader.close()


@pytest.mark.parametrize("content", [b"nothing", b""])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="no archive of `cilia sysdump`"):
        Reader(path)
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ArchiveError, match="no archive of `cilia sysdump`"):
        Reader(path)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://me:pass@10.0.0.1:6443/x", "https://***@10.0.0.1:6443/x"),
        ("Authorization: Bearer eyJ.abc-1_2", "Authorization: Bearer ***"),
        ('{"password": "hunter2", "a": 1}', '{"password": "***", "a": 1}'),
        ("token=abc next", "token=*** next"),
        ("-----BEGIN RSA PRIVATE KEY-----\nM\n-----END RSA PRIVATE KEY-----", "***"),
        ("https://10.0.0.1:6443 user@host", "https://10.0.0.1:6443 user@host"),
    ],
)
def test_what_looks_like_a_credential_is_struck_out(text: str, kept: str) -> None:
    assert redacted(text) == kept

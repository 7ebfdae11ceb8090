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
from cilia.cli.sysdump.secrets import redacted, redacted_row
from statedb import DB
from tables.addressing import ServiceName
from tables.loadbalancer.services import Service, new_services_table
from tables.sources import Source
from tests.statedb.serving import served
from tests.statedb_application import Author, Book, Library

APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


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
        ("https://10.0.0.1/x?token=abc&a=b", "https://10.0.0.1/x?token=***&a=b"),
        ("client-key-data: LS0tLS1C", "client-key-data: ***"),
        ("certificate-authority-data: LS0t", "certificate-authority-data: ***"),
        (
            r'''"{\"password\": \"hunter2\", \"a\": 1}"''',
            r'''"{\"password\": \"***\", \"a\": 1}"''',
        ),
        ("mounted eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOi.c2ln in", "mounted *** in"),
        ("kubectl.kubernetes.io/last-applied-configuration={x y}", f"{APPLIED}=***"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("basic tests of tokens and secrets", "basic tests of tokens and secrets"),
    ],
)
def test_what_looks_like_a_credential_is_struck_out(text: str, kept: str) -> None:
    assert redacted(text) == kept


def test_credentials_are_struck_out_of_tables(tmp_path: Path) -> None:
    """As people write them into annotations; what is no credential stays."""
    db = DB()
    services = new_services_table(db)
    kubeconfig = "users:\n- user:\n    token: SECRET1\n    client-key-data: SECRET2\n"
    notes = {
        APPLIED: '{"kind":"Service","metadata":{"annotations":{"x":"SECRET3"}}}',
        "example.com/env": '{"env": [{"name": "A"}], "password": "SECRET4"}',
        "example.com/hook": "https://me:SECRET5@hooks.example.com/?token=SECRET6&x=1",
        "example.com/kubeconfig": kubeconfig,
        "example.com/api-key": "SECRET7",
        "example.com/owner": "team a",
    }
    with db.write_txn(services) as wtxn:
        name = ServiceName("test/echo")
        services.insert(wtxn, Service(name, Source.K8S, annotations=notes))
        services.insert(wtxn, Service(ServiceName("test/plain"), Source.K8S))
    path = tmp_path / "a.tar.gz"
    with served(db, tmp_path / "s") as socket:
        dumped(socket, path)
        live = run("--socket", socket, "db", "show", "services", "-o", "yaml")
    assert "SECRET7" in live.output
    with tarfile.open(path) as archive:
        texts = [archive.extractfile(m) for m in archive.getmembers()]
        everything = b"\n".join(text.read() for text in texts if text is not None)
    assert b"SECRET" not in everything
    archived = run("db", "show", "services", "--from", str(path), "-o", "yaml")
    assert "team a" in archived.output and "test/plain" in archived.output
    assert "https://***@hooks.example.com/?token=***&x=1" in archived.output


def test_a_row_without_a_credential_stays_as_it_is() -> None:
    """Values of the kernel are no secrets, though they have names and values."""
    line = b'{ "object": {"Name": ["net", "ipv4"], "Value": "1", "Keys": ["a"]}, "rev": 1 }'
    assert redacted_row(line) == line

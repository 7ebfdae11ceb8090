# SPDX-License-Identifier: Apache-2.0
"""`cilia db` against a real server on a unix socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from cilia.__main__ import cli
from tests.statedb.serving import served
from tests.statedb_application import Author, Book, Library

BOOKS = (
    Book("Ulysses", 1922, Author("Joyce"), tags=("sea", "city")),
    Book("Babbitt", 1922),
    Book("Emma", 1815, Author("Austen")),
)


@pytest.fixture
def library() -> Library:
    library = Library(["--history=20"])
    for book in BOOKS:
        with library.db.write_txn(library.books) as wtxn:
            library.books.insert(wtxn, book)
    return library


@pytest.fixture
def path(library: Library, tmp_path: Path) -> Iterator[str]:
    with served(library.db, tmp_path / "s") as path:
        yield path


def run(path: str, line: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", path, "db", *line.split()])


def printed(path: str, line: str) -> str:
    result = run(path, line)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tables_are_listed(path: str) -> None:
    assert printed(path, "").splitlines() == [
        "Name      Objects   Deleted   Indexes            Initializers   Type    Revision",
        "books     3         0         title, year, tag   -              Book    3",
        "shelves   0         0         number, room       -              Shelf   0",
    ]


TABLE = (
    "Title     Year   Author    Tags\n"
    "Babbitt   1922   unknown   \n"
    "Emma      1815   Austen    \n"
    "Ulysses   1922   Joyce     sea, city\n"
)


def test_table_is_shown_in_every_format(path: str) -> None:
    assert printed(path, "show books") == TABLE
    assert printed(path, "show books --columns year,Title").startswith("year   Title\n1922   Babb")
    documents = list(yaml.safe_load_all(printed(path, "show books -o yaml")))
    assert [document["title"] for document in documents] == ["Babbitt", "Emma", "Ulysses"]
    text = printed(path, "show books -o json")
    decoded = json.loads("[" + text.replace("}\n{", "},{") + "]")
    assert decoded == [{**document} for document in documents]
    assert printed(path, "show shelves") == "Number   RoomName   Holds\n"
    assert printed(path, "show shelves -o json") == ""


@pytest.mark.parametrize(
    ("line", "titles"),
    [
        ("get books Emma", ["Emma"]),
        ("get books 1922 -i year", ["Babbitt"]),
        ("list books 1922 --index year", ["Babbitt", "Ulysses"]),
        ("list books 1900 --index year", []),
        ("prefix books U", ["Ulysses"]),
        ("lowerbound books Emma", ["Emma", "Ulysses"]),
        ("show books --at-revision 2", ["Babbitt", "Ulysses"]),
        ("prefix books E --at-revision 2", []),
    ],
)
def test_queries_print_what_they_find(path: str, line: str, titles: list[str]) -> None:
    assert printed(path, f"{line} --columns Title").splitlines() == ["Title", *titles]


def test_dump_is_one_document(path: str, library: Library) -> None:
    dumped = json.loads(printed(path, "dump"))
    assert dumped["instance"] == library.db.instance_id
    assert sorted(dumped["tables"]) == ["books", "shelves"]
    assert sorted(json.loads(printed(path, "dump books"))["tables"]) == ["books"]
    assert len(json.loads(printed(path, "dump books --at-revision 1"))["tables"]["books"]) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("show nothing", "has no table 'nothing'"),
        ("show books --columns Pages", "no column 'Pages': there is Title, Year, Author, Tags"),
        ("show books -o json --columns Title", "--columns goes with the format table only"),
        ("show books --at-revision 99", "has not reached revision 99"),
        ("show books --at-revision last", "'last' is no revision"),
        ("get books late -i year", "'late' is no key"),
        ("get books Iliad", "table books has no object with the key Iliad"),
        ("list shelves x -i room", "no text parser"),
        ("dump --at-revision 1", "name the table"),
    ],
)
def test_failure_is_one_sentence(path: str, line: str, says: str) -> None:
    result = run(path, line)
    assert result.exit_code == 1
    assert result.stdout in ("", "Title   Year   Author   Tags\n")
    assert result.stderr.startswith("Error: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_agent_is_one_sentence(tmp_path: Path) -> None:
    for line in ("", "show books", "show books --watch", "dump", "get books x"):
        result = run(str(tmp_path / "none"), line)
        assert result.exit_code == 1
        assert result.stderr == (
            f"Error: nobody listens on {tmp_path}/none: is the agent running? "
            "(--instance and --socket name another)\n"
        )


def test_every_command_has_an_example() -> None:
    runner = CliRunner()
    group = cli.get_command(click.Context(cli), "db")
    assert isinstance(group, click.Group)
    for name in ["", *group.commands]:
        result = runner.invoke(cli, ["db", *name.split(), "--help"])
        assert result.exit_code == 0
        assert "Examples:\n" in result.stdout, name


def test_table_names_complete(path: str, tmp_path: Path) -> None:
    complete = ShellComplete(cli, {}, "cilia", "_CILIA_COMPLETE")

    def words(socket: str, *typed: str) -> list[str]:
        *args, incomplete = typed
        found = complete.get_completions(["--socket", socket, "db", *args], incomplete)
        return [item.value for item in found]

    assert words(path, "show", "") == ["books", "shelves"]
    assert words(path, "prefix", "sh") == ["shelves"]
    assert words(path, "dump", "b") == ["books"]
    assert words(str(tmp_path / "none"), "show", "") == []


class Watching:
    """`cilia db show --watch` as a process."""

    def __init__(self, path: str, *options: str) -> None:
        command = [sys.executable, "-m", "cilia", "--socket", path, "db", "show", "books"]
        self.process = subprocess.Popen(
            [*command, "--watch", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out, self.err = self.process.stdout, self.process.stderr

    def lines(self, number: int) -> list[str]:
        return [self.out.readline() for _ in range(number)]

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.err.close()


def test_watch_goes_on_until_it_is_interrupted(path: str, library: Library) -> None:
    with Watching(path, "--columns", "Title,Year") as watching:
        assert watching.lines(4) == [
            "Change   Title     Year\n",
            "         Ulysses   1922\n",
            "         Babbitt   1922\n",
            "         Emma      1815\n",
        ]
        with library.db.write_txn(library.books) as wtxn:
            library.books.delete(wtxn, BOOKS[0])
            library.books.insert(wtxn, Book("A longer title", 1))
        assert watching.lines(2) == [
            "delete   Ulysses          1922\n",
            "write    A longer title   1\n",
        ]
        watching.process.send_signal(signal.SIGINT)
        assert watching.process.wait(5) == 0
        assert watching.err.read() == ""


def test_watch_waits_for_an_agent_that_restarts(library: Library, tmp_path: Path) -> None:
    with served(library.db, tmp_path / "s") as path:
        watching = Watching(path, "-o", "json")
        first = "".join(watching.lines(20))
    with watching:
        assert '"change": "write"' in first
        assert watching.err.readline().endswith("trying again\n")
        other = Library([])
        with other.db.write_txn(other.books) as wtxn:
            other.books.insert(wtxn, Book("Walden", 1854))
        with served(other.db, tmp_path / "s"):
            line = ""
            while not line.startswith("The whole table again:"):
                line = watching.err.readline()
                assert line
            while "Walden" not in line:
                line = watching.out.readline()
                assert line


def test_tables_are_read_without_what_only_an_agent_needs(path: str) -> None:
    code = (
        "import sys\n"
        "from cilia.__main__ import cli\n"
        f"cli(['--socket', {path!r}, 'db', 'show', 'books'], standalone_mode=False)\n"
        "agent = {'yaml', 'starlette', 'uvicorn', 'pydantic', 'kubernetes', 'prometheus_client'}\n"
        "agent |= {'pyroute2', 'structlog', 'cilia.agent', 'tables', 'bpf', 'asyncio', 'anyio'}\n"
        "agent |= {'statedb.table', 'importlib.metadata'}\n"
        "print(sorted(agent & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == TABLE + "[]\n"

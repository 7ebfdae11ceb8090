# SPDX-License-Identifier: Apache-2.0
"""`cilia shell` against the two endpoints, served over a real unix socket."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cilia.cli.completer import Completer
from cilia.cli.shell import AgentShell, history_file, shell, terminal
from cilia.script.commands import Command, Output
from cilia.script.sessions import Sessions
from tests.cilia.cli.terminal import Terminal


def _show(state: Any, flags: dict[str, Any], args: list[str]) -> Output:
    return Output(f"table {args[0]}\n")


COMMANDS = [Command("db/show", "print a table", _show, words=lambda: ["backends", "frontends"])]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    sessions: Sessions


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._send({"commands": self.server.sessions.describe()})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(self.server.sessions.answer(body))

    def _send(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = str(tmp_path / "agent.sock")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with _Server(path, _Handler) as server:
        server.sessions = Sessions(lambda: COMMANDS)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield path
        server.shutdown()
        thread.join()
        server.sessions.close_all()


def run(socket: str, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(shell, arguments, obj={"socket": socket}, input=stdin)


@pytest.mark.parametrize("words", [["db/show", "x y"], ["db show 'x y'"]])
def test_one_command_as_arguments(socket: str, words: list[str]) -> None:
    result = run(socket, *words)
    assert (result.exit_code, result.output) == (0, "table x y\n")


def test_help_of_a_command_is_the_agents(socket: str) -> None:
    assert "byte for byte" in run(socket, "cmp", "-h").output


def test_lines_from_a_pipe_share_a_session_and_end_at_a_failure(socket: str) -> None:
    good = run(socket, stdin="env A=1\n\n# note\necho $A\nstdout 1\n! cat missing\n")
    assert (good.exit_code, good.stdout) == (0, "1\n")
    assert "no such file" in good.stderr
    bad = run(socket, stdin="echo a\nno-such\necho b\n")
    assert (bad.exit_code, bad.stdout) == (1, "a\n")
    assert "unknown command 'no-such'" in bad.stderr


def test_named_files_are_sent_and_written_ones_brought_back(socket: str) -> None:
    Path("mine").write_text("a\n")
    Path("other").write_text("o\n")
    agent = AgentShell(socket)
    assert agent.run("sed a b mine")
    assert Path("mine").read_text() == "b\n"
    assert agent.run("cp mine copy")
    assert Path("copy").read_text() == "b\n"
    assert not agent.run("cat ../agent.sock")
    assert agent.run("! cat $NO/other")
    # What the line does not name stays where it is.
    assert agent.run("env F=hidden")
    assert agent.run("cp mine $F")
    assert not Path("hidden").exists()
    agent.close()


def test_no_agent_is_told_in_one_line(tmp_path: Path) -> None:
    result = run(str(tmp_path / "none.sock"), "db")
    assert result.exit_code == 1
    assert result.output.startswith("Error: no agent answers on")


def test_tab_completes_commands_flags_arguments_and_files(socket: str) -> None:
    Path("front-file").touch()
    Path("frontdir").mkdir()
    completer = Completer(AgentShell(socket).commands())
    assert completer.candidates("", "db") == ["db/show "]
    assert completer.candidates("! ", "gre") == ["grep "]
    assert completer.candidates("db ", "s") == ["show "]
    assert completer.candidates("db show ", "b") == ["backends "]
    assert completer.candidates("db/show ", "fr") == ["front-file ", "frontdir/", "frontends "]
    assert completer.candidates("grep ", "--") == ["--count ", "--quiet "]
    assert completer.candidates("no-such ", "") == []


def test_history_is_kept_between_shells(socket: str) -> None:
    import readline

    completer = Completer([])
    with terminal(completer):
        readline.add_history("db/show frontends")
    assert "db/show frontends\n" in history_file().read_text()
    readline.clear_history()
    with terminal(completer):
        last = readline.get_history_item(readline.get_current_history_length())
    assert last == "db/show frontends"
    assert readline.get_completer() == completer.complete
    readline.set_completer(None)


def test_a_conversation_on_a_terminal(socket: str) -> None:
    terminal = Terminal("--socket", socket, "shell")
    try:
        terminal.expect("cilia> ")
        terminal.type("db/sh\tfr\t\r")
        terminal.expect("table frontends")
        terminal.expect("cilia> ")
        terminal.type("cat missing\r")
        terminal.expect("no such file")
        terminal.expect("cilia> ")
        terminal.type("half a li")
        terminal.expect("half a li")
        terminal.interrupt("cilia> ")
        terminal.type("exit\r")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
    assert "db/show frontends" in history_file().read_text()

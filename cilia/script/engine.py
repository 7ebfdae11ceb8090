# SPDX-License-Identifier: Apache-2.0
"""Runs scripts: line by line, with retry of sections.

    for each line    a `#` in column 0 opens a section; else parse, test guards, expand, run, check
    wrong outcome    plain: the script has failed
                     with `*` or `!*`: wait, run the section again up to this command; at the first
                     wrong outcome wait longer and start over, until the deadline

So the commands before a retried one must be idempotent; arguments stay those of the first time.
The engine is synchronous: it blocks its thread, never an event loop. It holds no state of a
script, so that one engine may run many scripts at once. The semantics are those of the `script`
package of the Go project with the retries that cilium/hive added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cilia.script.commands import CommandLike, CommandSet, Output, OutputLike
from cilia.script.conditions import PRIVILEGED, Condition, all_hold
from cilia.script.environment import format_duration
from cilia.script.errors import (
    BackgroundFailed,
    CommandFailed,
    DeadlineExceeded,
    ScriptError,
    ScriptFailed,
    SkipScript,
    StopScript,
    Unexcused,
    UnknownName,
)
from cilia.script.flags import HelpRequested, asks_for_help, parse_flags
from cilia.script.helptext import command_help
from cilia.script.outcomes import check, describe
from cilia.script.state import BackgroundJob, Flags, State
from cilia.script.tokens import Line, parse_line, plain_text, quote, raw_text

RETRY_INTERVAL_S = 0.1
MAX_RETRY_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Ending:
    """How a script ended that did not fail: to its end, by `stop`, or by `skip`."""

    skipped: bool = False
    stopped: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A command with the arguments it was first given; retries run it from this."""

    line: Line
    name: str
    args: tuple[str, ...]


class Engine:
    """A set of commands and conditions, and the times between retries."""

    def __init__(
        self,
        commands: Iterable[CommandLike],
        *,
        conditions: Iterable[Condition] = (PRIVILEGED,),
        retry_interval_s: float = RETRY_INTERVAL_S,
        max_retry_interval_s: float = MAX_RETRY_INTERVAL_S,
    ) -> None:
        self.commands = CommandSet(commands)
        self.conditions = {condition.name: condition for condition in conditions}
        self.retry_interval_s = retry_interval_s
        self.max_retry_interval_s = max_retry_interval_s

    def replace_commands(self, commands: Iterable[CommandLike]) -> None:
        """Use other commands from the next line on."""
        self.commands = CommandSet(commands)

    def run(self, state: State, script: str, file: str = "script") -> Ending:
        """Run a script to its end; what is left in the background is ended and checked then.

        Raises: ScriptFailed.
        """
        run = _ScriptRun(self, state, file)
        try:
            ending = run.run(script)
        except ScriptFailed:
            end_background(state)
            raise
        error = end_background(state)
        if error is not None:
            raise run.failed(error)
        return ending

    def run_line(self, state: State, text: str) -> None:
        """Run one line by itself, as in a shell; `*` acts like no prefix.

        Raises: ScriptError if the outcome is wrong.
        """
        self.attach(state)
        line = parse_line(text)
        if line is None:
            return
        if not all_hold(state, line.guards):
            state.log("[condition not met]\n")
            return
        try:
            self.execute(state, self.prepare(state, line))
        except (StopScript, SkipScript) as ending:
            state.log(f"{ending}\n")

    def attach(self, state: State) -> None:
        """Show the state the commands of this engine, for `help` and `break`."""
        state.commands = self.commands
        state.conditions = self.conditions
        state.run_line = lambda text: self.run_line(state, text)

    def prepare(self, state: State, line: Line) -> Step:
        """Find the command's name and expand its arguments."""
        first = plain_text(line.words[0]) if line.words else None
        name, used = self.commands.resolve(line.name, first)
        words = line.words[used:]
        command = self.commands.get(name)
        regexp_at = -1
        if command is not None and command.regexp_args:
            regexp_at = first_argument([raw_text(word) for word in words])
        args = tuple(
            "".join(
                part.text if part.quoted else state.expand(part.text, in_regexp=index == regexp_at)
                for part in word
            )
            for index, word in enumerate(words)
        )
        return Step(line, name, args)

    def execute(self, state: State, step: Step) -> None:
        """Run a command and check its outcome.

        Raises: CommandFailed if it is the wrong one; Unexcused; StopScript and SkipScript.
        """
        self.attach(state)
        command = self.commands.get(step.name)
        if command is None:
            raise UnknownName(f"unknown command {step.name!r}")
        try:
            flags, args = _arguments(command, step.args)
        except HelpRequested:
            state.set_output(Output(command_help(command, verbose=True)))
            return
        if step.line.background:
            self._start(state, command, step, flags, args)
            return
        output, error = _call(lambda: command.run(state, flags, args))
        if output is not None:
            state.set_output(output)
        check(state, step.line.want, error)
        if error is not None:
            state.log(f"[{describe(error)}]\n")

    def _start(
        self, state: State, command: CommandLike, step: Step, flags: Flags, args: list[str]
    ) -> None:
        start = getattr(command, "start", None)
        if start is None:
            raise Unexcused(f"{step.name} cannot run in the background")
        try:
            finish = start(state, flags, args)
        except Exception as error:  # noqa: BLE001 - any exception of a command is its failure
            check(state, step.line.want, error)
            return
        text = f"{step.name} {quote(args)}".rstrip()
        state.background.append(BackgroundJob(text, step.line.want, finish))
        state.stdout = state.stderr = ""


class _ScriptRun:
    """One script on its way: the line it is at, and the section so far."""

    def __init__(self, engine: Engine, state: State, file: str) -> None:
        self.engine = engine
        self.state = state
        self.file = file
        self.number = 0
        self.text = ""
        self.section = ""
        self.section_line = 0
        self.steps: list[Step] = []

    def run(self, script: str) -> Ending:
        try:
            for text in script.split("\n"):
                self.number += 1
                self.text = text
                self._line(text)
        except StopScript as stop:
            self.state.log(f"stop: {stop}\n")
            return Ending(stopped=True, message=str(stop))
        except SkipScript as skip:
            self.state.log(f"skip: {skip}\n")
            return Ending(skipped=True, message=str(skip))
        except ScriptError as error:
            raise self.failed(error) from error
        return Ending()

    def failed(self, error: BaseException) -> ScriptFailed:
        """The verdict at the current line."""
        return ScriptFailed(
            file=self.file,
            line=self.number,
            command=self.text.strip(),
            reason=describe(error),
            section=self.section,
            section_line=self.section_line,
            retries=self.state.retry_count,
            log="".join(self.state.section_log),
        )

    def _line(self, text: str) -> None:
        state = self.state
        if state.remaining_s() <= 0:
            raise DeadlineExceeded("the script's deadline has passed")
        if text.startswith("#"):
            self._open_section(text)
            return
        line = parse_line(text)
        if line is None:
            return
        state.log(f"> {text.strip()}\n")
        self.engine.attach(state)
        if not all_hold(state, line.guards):
            state.log("[condition not met]\n")
            return
        step = self.engine.prepare(state, line)
        self.steps.append(step)
        state.retry_count, state.retrying = 0, line.want.retries
        try:
            self.engine.execute(state, step)
        except CommandFailed as error:
            if not line.want.retries:
                raise
            self._retry(error)

    def _open_section(self, text: str) -> None:
        self.section, self.section_line = text.removeprefix("#").strip(), self.number
        self.steps = []
        self.state.section_log.clear()
        self.state.log(f"{text}\n")
        # The heading is part of the progress, and of a failure's first lines, but not of its log.
        self.state.section_log.clear()

    def _retry(self, error: CommandFailed) -> None:
        """Run the section again until all outcomes are right; the deadline ends that."""
        interval = self.engine.retry_interval_s
        last: CommandFailed | None = error
        while last is not None:
            gist = describe(last).partition("\n")[0]
            self.state.log(f"({gist}; again in {format_duration(interval)})\n")
            log = self.state.section_log
            self.state.section_log = []
            try:
                self.state.wait(interval)
                wrong = self._round()
            except DeadlineExceeded:
                # A round cut short says less than the one before it.
                self.state.section_log = log
                raise DeadlineExceeded(f"deadline passed; last: {describe(last)}") from last
            interval = min(2 * interval, self.engine.max_retry_interval_s)
            last = wrong
        self.state.log(f"(right after {self.state.retry_count} retries)\n")
        self.state.retry_count, self.state.retrying = 0, False

    def _round(self) -> CommandFailed | None:
        """Run the section once more; its first wrong outcome, None if all are right."""
        self.state.retry_count += 1
        for step in self.steps:
            self.state.log(f"> {step.line.text.strip()}\n")
            try:
                self.engine.execute(self.state, step)
            except DeadlineExceeded:
                raise
            except CommandFailed as error:
                return error
        return None


def first_argument(raw: list[str]) -> int:
    """The index of the first argument that is no flag, or of the one after `--`; -1 for none."""
    for index, text in enumerate(raw):
        if text == "--":
            return index + 1
        if not text.startswith("-"):
            return index
    return -1


def end_background(state: State) -> BaseException | None:
    """End what still runs in the background, and return the first wrong outcome."""
    if not state.background:
        return None
    state.cancel()
    try:
        collect_background(state)
    except BackgroundFailed as error:
        return error
    return None


def collect_background(state: State) -> None:
    """Wait for all background commands; the buffers become all their output, in starting order.

    Raises: BackgroundFailed, naming each that ended other than its own prefix demands.
    """
    jobs, state.background = state.background, []
    stdout, stderr, wrong = list[str](), list[str](), list[str]()
    for job in jobs:
        output, error = _call(job.finish)
        state.log(f"[background] {job.text}\n")
        if output is not None:
            stdout.append(output.stdout)
            stderr.append(output.stderr)
        try:
            check(state, job.want, error)
        except ScriptError as failure:
            wrong.append(f"{job.text}: {describe(failure)}")
    state.set_output(Output("".join(stdout), "".join(stderr)))
    if wrong:
        raise BackgroundFailed("; ".join(wrong))


def _arguments(command: CommandLike, args: tuple[str, ...]) -> tuple[Flags, list[str]]:
    if command.flags:
        return parse_flags(command.flags, args)
    if asks_for_help(args):
        raise HelpRequested
    return {}, list(args)


def _call(run: Callable[[], OutputLike | None]) -> tuple[OutputLike | None, BaseException | None]:
    """The output of a command and its failure, in whichever way it reports it."""
    try:
        output = run()
    except (StopScript, SkipScript):
        raise
    except Exception as error:  # noqa: BLE001 - any exception of a command is its failure
        return None, error
    return output, output.error if output is not None else None

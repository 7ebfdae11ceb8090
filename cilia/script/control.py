# SPDX-License-Identifier: Apache-2.0
"""Commands on the script itself: break echo env help skip sleep stop wait."""

from __future__ import annotations

import os
import time

from cilia.script import txtar
from cilia.script.commands import Command, Flag, Output, OutputLike
from cilia.script.engine import collect_background
from cilia.script.environment import parse_duration
from cilia.script.errors import DeadlineExceeded, ScriptError, SkipScript, StopScript, UnknownName
from cilia.script.files import need
from cilia.script.helptext import list_commands, list_conditions
from cilia.script.outcomes import describe
from cilia.script.processes import EXEC
from cilia.script.state import SEPARATORS, Flags, State


def _echo(state: State, flags: Flags, args: list[str]) -> Output:
    return Output(" ".join(args) + "\n")


def _env(state: State, flags: Flags, args: list[str]) -> Output | None:
    if flags["from-stdout"]:
        need(args, 0, 0)
        state.env[flags["from-stdout"]] = state.stdout.strip()
        return None
    if not args:
        shown = sorted(name for name in state.env if name not in SEPARATORS)
        return Output("".join(f"{name}={state.env[name]}\n" for name in shown))
    lines = list[str]()
    for argument in args:
        name, equals, value = argument.partition("=")
        if equals:
            state.env[name] = value
        else:
            lines.append(f"{name}={state.env.get(name, '')}\n")
    return Output("".join(lines)) if lines else None


def _help(state: State, flags: Flags, args: list[str]) -> Output:
    verbose = bool(args)
    patterns = args[1:] if args[:1] == ["-v"] else args
    tags = [text[1:-1] for text in patterns if text.startswith("[") and text.endswith("]")]
    names = [text for text in patterns if text[1:-1] not in tags or not text.startswith("[")]
    unknown = [tag for tag in tags if tag.partition(":")[0] not in state.conditions]
    if unknown:
        raise UnknownName(f"unknown condition {unknown[0]!r}")
    if tags:
        chosen = [state.conditions[tag.partition(":")[0]] for tag in tags]
        text = list_conditions(chosen, state)
    elif not names:
        text = f"conditions:\n\n{list_conditions(state.conditions.values(), state)}\ncommands:\n\n"
    else:
        text = ""
    if names or not tags:
        text += list_commands(state.commands, " ".join(names), verbose=verbose)
    return Output(text)


class _Sleep:
    """A sleep that counts from its start, so that several in the background overlap."""

    def __init__(self, state: State, flags: Flags, args: list[str]) -> None:
        need(args, 1, 1)
        self.state = state
        self.until = time.monotonic() + parse_duration(args[0])

    def __call__(self) -> OutputLike:
        try:
            self.state.wait(max(0.0, self.until - time.monotonic()))
        except DeadlineExceeded as error:
            return Output(error=error)
        return Output()


def _sleep(state: State, flags: Flags, args: list[str]) -> OutputLike:
    return _Sleep(state, flags, args)()


def _wait(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 0, 0)
    collect_background(state)


def _stop(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 0, 1)
    raise StopScript(*args)


def _skip(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 0, 1)
    raise SkipScript(*args)


def _break(state: State, flags: Flags, args: list[str]) -> None:
    """Lines from the terminal until its end; the time spent there is given back to the script."""
    need(args, 0, 0)
    began = time.monotonic()
    terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    with open(terminal, "r+b", buffering=0) as tty:
        tty.write(b"\nStopped here; end of input (control-D) continues.\n")
        while True:
            tty.write(b"debug> ")
            line = tty.readline()
            if not line:
                break
            tty.write(txtar.encode(_run_for_terminal(state, txtar.decode(line).rstrip("\n"))))
    state.deadline += time.monotonic() - began


def _run_for_terminal(state: State, line: str) -> str:
    """Run a line and return what it logged, which is its output and its failure."""
    start = len(state.section_log)
    try:
        if state.run_line is not None:
            state.run_line(line)
    except ScriptError as error:
        state.log(f"{describe(error)}\n")
    return "".join(state.section_log[start:])


CONTROL_COMMANDS = (
    Command("echo", "print the arguments to stdout", _echo, "TEXT..."),
    Command(
        "env",
        "set or print variables",
        _env,
        "[NAME[=VALUE]...]",
        ("Without arguments all variables are printed.",),
        (Flag("from-stdout", kind="str", help="set this variable to the text in stdout"),),
    ),
    EXEC,
    Command(
        "help",
        "print the help of commands and conditions",
        _help,
        "[-v] [REGEXP | [CONDITION]]",
        ("With an argument, or with -v, also the details.",),
        regexp_args=True,
    ),
    Command("skip", "end the script here, as one that could not run", _skip, "[MESSAGE]"),
    Command("sleep", "wait for a time such as 100ms", _sleep, "DURATION", start=_Sleep),
    Command("stop", "end the script here, successfully", _stop, "[MESSAGE]"),
    Command(
        "wait",
        "wait for the commands in the background",
        _wait,
        detail=("The buffers are then all their output, in the order of their start.",),
    ),
    Command("break", "stop here for commands from the terminal", _break),
)

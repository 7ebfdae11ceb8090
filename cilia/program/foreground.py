# SPDX-License-Identifier: Apache-2.0
"""A program in the foreground: logs, an event loop, signals that end it, errors as one sentence.

SIGTERM, Ctrl-C and SIGHUP (a terminal that is closed) end it in order; under nohup(1), which has
SIGHUP ignored, that one does not.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import click
import structlog

from cilia.program import logging
from cilia.program.errors import ProgramError
from cilia.program.options import ProgramConfig

__all__ = ["run_until_signalled"]

C = TypeVar("C", bound=ProgramConfig)
log = structlog.get_logger("program")


def run_until_signalled(
    work: Callable[[C], Awaitable[int]],
    config: C,
    ending: Callable[[C], str] = lambda _: "nothing is left behind",
) -> None:
    """Run `work` until it returns the exit code or a signal comes, which is a 0; ends the process.

    `ending` says what holds from then on; it is asked for when the signal comes, and logged.

    Raises:
        click.ClickException: what a person must change first.
    """
    logging.configure(config.log_level, config.log_format)
    refused: list[str] = []
    code = 0
    try:
        code = anyio.run(_signalled, work, config, ending)
    except* ProgramError as group:  # bare or from a task group; a raise here would be a group again
        refused = _sentences(group)
    if refused:
        raise click.ClickException("; ".join(refused))
    sys.exit(code)


def _sentences(group: BaseExceptionGroup[BaseException]) -> list[str]:
    """The texts of a group, however deep."""
    return [
        text
        for error in group.exceptions
        for text in (_sentences(error) if isinstance(error, BaseExceptionGroup) else [str(error)])
    ]


async def _signalled(
    work: Callable[[C], Awaitable[int]], config: C, ending: Callable[[C], str]
) -> int:
    code = 0
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_on_signal, group.cancel_scope, lambda: ending(config))
        code = await work(config)
        group.cancel_scope.cancel()
    return code


async def _cancel_on_signal(scope: anyio.CancelScope, ending: Callable[[], str]) -> None:
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*numbers) as signals:
        async for number in signals:
            log.info(f"ending; {ending()}", signal=number.name)
            scope.cancel()

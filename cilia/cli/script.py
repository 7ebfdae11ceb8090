# SPDX-License-Identifier: Apache-2.0
"""`cilia script`: run golden scripts outside of the test suite.

Ends with 0 if every script succeeded or was skipped, with 1 if one failed, with 2 if it was called
wrongly or a file cannot be read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import click

from cilia.script.errors import ScriptFailed
from cilia.script.runner import Suite, run_file

DEFAULT_SUITE = "cilia.agent.script.application:SUITE"
FAILED, UNUSABLE = 1, 2


@dataclass(slots=True)
class Report:
    """How one script ended: what to print, and whether it counts as a failure."""

    name: str
    verdict: str
    seconds: float
    text: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.verdict == "FAIL"


@click.group()
def script() -> None:
    """Run golden scripts."""


@script.command()
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, path_type=Path),
)
@click.option("--update", is_flag=True, help="Write what was found into the expected files.")
@click.option("-v", "--verbose", is_flag=True, help="Show every command with its output.")
@click.option("-j", "--jobs", type=click.IntRange(1), default=1, help="How many at once.")
@click.option(
    "--suite",
    "suite_name",
    default=DEFAULT_SUITE,
    show_default=True,
    metavar="MODULE:NAME",
    help="What the scripts are run against.",
)
@click.pass_context
def run(
    ctx: click.Context,
    files: tuple[Path, ...],
    update: bool,
    verbose: bool,
    jobs: int,
    suite_name: str,
) -> None:
    """Run script files, and those in directories; a line for each says how it ended.

    \b
    Examples:
      cilia script run testdata/loadbalancer
      cilia script run -v mine.txtar
      cilia script run --update testdata/loadbalancer/nodeport.txtar
    """
    suite = load_suite(suite_name)
    scripts = list(found(files))
    if not scripts:
        raise click.UsageError("no *.txtar there")
    cases = [(file, variant) for file in scripts for variant in suite.variants]
    failures = 0
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(run_one, file, suite, variant, update, verbose and jobs == 1)
            for file, variant in cases
        ]
        for future in futures:
            report = future.result()
            failures += report.failed
            show(report, verbose and jobs > 1)
    click.echo(f"{len(cases)} scripts, {failures} failed")
    ctx.exit(FAILED if failures else 0)


def load_suite(name: str) -> Suite:
    """The suite that `MODULE:NAME` names.

    Raises: click.UsageError if there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        suite = getattr(import_module(module), attribute or "SUITE")
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"no suite {name}: {error}") from error
    if not isinstance(suite, Suite):
        raise click.UsageError(f"{name} is not a suite")
    return suite


def found(paths: Sequence[Path]) -> Iterator[Path]:
    """The files themselves, and the scripts below directories, by name."""
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob("*.txtar"))
        else:
            yield path


def run_one(file: Path, suite: Suite, variant: str, update: bool, live: bool) -> Report:
    """Run one script; with `live` its log is printed as it is written, else kept."""
    name = f"{file} [{variant}]" if variant else str(file)
    log = list[str]()
    began = time.monotonic()
    try:
        result = run_file(
            file,
            suite,
            variant=variant,
            update=update,
            sink=(lambda text: click.echo(coloured(text), nl=False)) if live else log.append,
        )
    except ScriptFailed as failed:
        return Report(name, "FAIL", time.monotonic() - began, f"{failed}\n", log)
    except OSError as error:
        click.echo(f"{file}: {error.strerror}", err=True)
        sys.exit(UNUSABLE)
    verdict = "skip" if result.ending.skipped else "ok"
    text = "".join(f"updated {name}\n" for name in result.updated)
    message = f"{result.ending.message}\n" if result.ending.skipped else ""
    return Report(name, verdict, time.monotonic() - began, message + text, log)


def show(report: Report, verbose: bool) -> None:
    colour = {"FAIL": "red", "skip": "yellow"}.get(report.verdict, "green")
    if verbose:
        click.echo(coloured("".join(report.log)), nl=False)
    verdict = click.style(f"{report.verdict:<4}", fg=colour)
    click.echo(f"{verdict} {report.name} ({report.seconds:.2f} s)")
    for line in report.text.splitlines():
        click.echo(coloured(f"     {line}"))


def coloured(text: str) -> str:
    """Diff lines and headings in colour, which click leaves out where there is no terminal."""
    return "".join(_coloured_line(line) for line in text.splitlines(keepends=True))


def _coloured_line(line: str) -> str:
    content = line.strip()
    colour = {"+": "green", "-": "red", "@": "cyan", "#": "blue"}.get(content[:1])
    return click.style(line.rstrip("\n"), fg=colour) + "\n" * line.endswith("\n")

# SPDX-License-Identifier: Apache-2.0
"""The programme of the quickstart: make the stage, start the agent, ask the ClusterIP, undo all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import click

from cilia.cli.quickstart import stage
from cilia.cli.quickstart.asking import Asking
from cilia.linux.lock import AlreadyRunning, InstanceLock, holder_of

CLUSTER_IP = "10.201.0.10"
STAGE_DIR = Path("/run") / f"{stage.INSTANCE}-stage"
AGENT_DIR = Path("/run") / stage.INSTANCE
ANSWER_DEADLINE_S = 60.0
STOP_DEADLINE_S = 10.0
ASK_INTERVAL_S = 0.2


def say(text: str) -> None:
    click.echo(text)


@click.command()
@click.option("--oneshot", is_flag=True, help="Undo all and end once both backends have answered.")
@click.option(
    "--manifests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("examples/quickstart"),
    show_default=True,
    help="The directory of Kubernetes YAML that the agent reads.",
)
def quickstart(oneshot: bool, manifests: Path) -> None:
    """Run a real agent on a Service with two backends and ask its ClusterIP.

    Makes two network namespaces with a small HTTP server each, attaches the eBPF programs, and
    undoes all of it at the end (Ctrl-C).

    \b
    Examples:
      cilia quickstart
      cilia quickstart --oneshot
    """
    if os.geteuid() != 0:
        raise click.ClickException("the quickstart loads eBPF programs: run it as root")
    signal.signal(signal.SIGTERM, partial(_end_on_signal, os.getpid()))
    STAGE_DIR.mkdir(mode=0o700, exist_ok=True)
    lock = InstanceLock()
    try:
        lock.acquire(STAGE_DIR)
        with ExitStack() as stack:
            stack.callback(_remove_stage_dir)
            _programme(stack, manifests, oneshot)
    except (AlreadyRunning, stage.StageError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        say("")
    finally:
        lock.release()
    say("Undone: routes, namespaces, links, programs, maps and state are gone.")


def _end_on_signal(pid: int, number: int, frame: object) -> None:
    """Unwinds and undoes all; a child that was forked meanwhile inherits this and just ends."""
    if os.getpid() != pid:
        os._exit(128 + number)
    sys.exit(128 + number)


def _programme(stack: ExitStack, manifests: Path, oneshot: bool) -> None:
    _remove_leftovers()
    stage.check()
    say("Will make, and undo at the end:")
    for item in stage.plan():
        say(f"  {item}")
    stack.callback(_undo)
    for _ in stage.make():
        pass
    for place in stage.PLACES:
        stack.enter_context(_backend(place))
    agent = stack.enter_context(_agent(manifests))
    asking = Asking(CLUSTER_IP)
    _ask_until_both_answered(asking, agent)
    _say_what_was_seen(asking)
    if not oneshot:
        _stay(asking, agent)


def _remove_leftovers() -> None:
    found = stage.leftovers()
    if found or AGENT_DIR.exists():
        say(f"Removing what an earlier run left: {', '.join(found) or 'agent state and pins'}")
        if AGENT_DIR.exists() and (pid := holder_of(AGENT_DIR)):
            os.kill(pid, signal.SIGTERM)  # the agent of that run; the clean-up waits for its end
        _undo()


def _undo() -> None:
    """All of it, in the order in which nothing is left without its guard."""
    done = subprocess.run(
        [sys.executable, "-m", "cilia", "--instance", stage.INSTANCE, "cleanup", "--wait"],
        capture_output=True,
        text=True,
        check=False,
    )
    stage.undo()
    if done.returncode:
        raise click.ClickException(f"clean-up failed: {done.stderr.strip()}")


def _remove_stage_dir() -> None:
    for file in STAGE_DIR.iterdir():
        file.unlink()
    STAGE_DIR.rmdir()


@contextmanager
def _backend(place: stage.Place) -> Iterator[None]:
    module = "cilia.cli.quickstart.backend"
    arguments = [place.namespace, str(place.pod.ip), "8080", place.name]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin and process.stdout
    try:
        if process.stdout.readline() != b"ready\n":
            raise click.ClickException(f"{place.name} did not start in {place.namespace}")
        yield
    finally:
        process.stdin.close()
        process.wait(STOP_DEADLINE_S)
        process.stdout.close()


@contextmanager
def _agent(manifests: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The agent as a process of its own; its log is a file, shown when it fails."""
    command = [sys.executable, "-m", "cilia", "agent"]
    command += [f"--instance={stage.INSTANCE}", f"--k8s-manifests={manifests}"]
    # Nothing is attached to the machine's own devices.
    command += ["--devices=!+", "--pod-devices=cqs+"]
    with open(STAGE_DIR / "agent.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=log, stdout=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask_until_both_answered(asking: Asking, agent: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while len(asking.answers) < len(stage.PLACES):
        asking.ask()
        _check_agent(agent)
        waited = time.monotonic() - started
        if waited > ANSWER_DEADLINE_S:
            raise click.ClickException(
                f"http://{CLUSTER_IP}/ was not answered by both backends in {waited:.0f} s"
                f" ({asking.line()}; {dict(asking.failures)})\n{_log_tail()}"
            )
        if not asking.answers:
            time.sleep(0.05)  # before the agent is up each try fails at once
    asking.failures.clear()


def _check_agent(agent: subprocess.Popen[bytes]) -> None:
    if agent.poll() is not None:
        raise click.ClickException(f"the agent ended with {agent.returncode}:\n{_log_tail()}")


def _log_tail(lines: int = 15) -> str:
    text = (STAGE_DIR / "agent.log").read_text(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def _say_what_was_seen(asking: Asking) -> None:
    say(f"\nhttp://{CLUSTER_IP}/ is answered by {asking.line()}")
    say("\nTry in another terminal:")
    say(f"  curl http://{CLUSTER_IP}/")
    say(f"  {_cilia()} db show frontends")
    say(f"  {_cilia()} bpf lb list")


def _cilia() -> str:
    """How this cilia is called from the current directory."""
    executable = Path(sys.executable).with_name("cilia")
    try:
        return str(executable.relative_to(Path.cwd()))
    except ValueError:
        return str(executable)


def _stay(asking: Asking, agent: subprocess.Popen[bytes]) -> None:
    """One live line until Ctrl-C (a line a change of the counts is too much without a terminal)."""
    say("\nCtrl-C ends this and undoes all.")
    on_terminal = sys.stdout.isatty()
    while True:
        asking.ask()
        _check_agent(agent)
        if on_terminal:
            click.echo(f"\r\x1b[K{asking.line()}", nl=False)
        time.sleep(ASK_INTERVAL_S)  # the rate at which the live line asks

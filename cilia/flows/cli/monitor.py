# SPDX-License-Identifier: Apache-2.0
"""`cilia monitor`: packets that the datapath drops and passes, as it happens."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import click

from bpf.events import Decoder, Event, EventKind
from bpf.records import records
from cilia.flows import lines
from cilia.flows.wire import PATH, Frame, FrameKind, frames
from cilia.program.output import pod_network_rows

__all__ = ["monitor"]

#: The kinds that programs report.
KINDS: Final = (EventKind.DROP, EventKind.TRACE)
#: Four of the agent's signs of life.
SILENCE_S: Final = 60.0

_NUMBER: Final = click.IntRange(0, 65_535)


def _endpoints(flag: str, name: str, text: str) -> Callable[[Any], Any]:
    return click.option(flag, name, type=_NUMBER, multiple=True, metavar="ID", help=text)


def _pods(flag: str, name: str, text: str) -> Callable[[Any], Any]:
    return click.option(flag, name, multiple=True, metavar="NAMESPACE/NAME", help=text)


@dataclass(frozen=True)
class Filter:
    """Which events are shown: what is empty lets all pass."""

    senders: frozenset[int] = frozenset()
    receivers: frozenset[int] = frozenset()
    related: frozenset[int] = frozenset()

    def passes(self, event: Event) -> bool:
        source, destination = event.source_endpoint, event.destination_endpoint
        return (
            (not self.senders or source in self.senders)
            and (not self.receivers or destination in self.receivers)
            and (not self.related or bool({source, destination} & self.related))
        )


@dataclass
class Printer:
    """Prints what passes the filter."""

    wanted: Filter
    show: Callable[[Event], str]
    lost: Callable[[int, str, int | None], str]
    decoder: Decoder = field(default_factory=Decoder)

    def frame(self, frame: Frame) -> None:
        if frame.kind == FrameKind.RECORDS:
            self._records(frame.payload)
        elif frame.kind == FrameKind.NOTICE:
            self._notice(frame.notice())

    def _records(self, raw: bytes) -> None:
        for event in self.decoder.decode(records(raw)):
            if self.wanted.passes(event):
                click.echo(self.show(event))
        sys.stdout.flush()

    def _notice(self, notice: dict[str, Any]) -> None:
        if notice.get("listening"):
            click.echo("Listening for events; press Ctrl-C to end", err=True)
        elif "lost" in notice:
            click.echo(self.lost(notice["lost"], notice["at"], notice.get("kind")))


@click.command()
@click.option(
    "-t",
    "--type",
    "kinds",
    type=click.Choice([kind.name.lower() for kind in KINDS]),
    multiple=True,
    help="Only events of this type; may be given again.",
)
@_endpoints("--from", "senders", "Only what this endpoint sends.")
@_endpoints("--to", "receivers", "Only what goes to this endpoint.")
@_endpoints("--related-to", "related", "Only what this endpoint sends or gets.")
@_pods("--from-pod", "sending_pods", "Only what this pod sends.")
@_pods("--to-pod", "receiving_pods", "Only what goes to this pod.")
@click.option("-n", "--numeric", is_flag=True, help="Numbers of identities, not names.")
@click.option("-v", "--verbose", is_flag=True, help="All that is known, on several lines.")
@click.option("--hex", "as_hex", is_flag=True, help="With -v: the bytes of the packet.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
@click.pass_context
def monitor(
    ctx: click.Context,
    kinds: tuple[str, ...],
    senders: tuple[int, ...],
    receivers: tuple[int, ...],
    related: tuple[int, ...],
    sending_pods: tuple[str, ...],
    receiving_pods: tuple[str, ...],
    numeric: bool,
    verbose: bool,
    as_hex: bool,
    output: str,
) -> None:
    """Show packets that the datapath drops and passes, as it happens.

    Options of one name widen the choice, options of different names narrow it. Endpoints are those
    of `cilia endpoint list`. Which packets that pass are reported is the agent's option
    --monitor-aggregation.

    \b
    Examples:
      cilia monitor --type drop
      cilia monitor --related-to 7 -v
      cilia monitor --from-pod shop/web-0 --type trace -o json
    """
    socket = ctx.obj["socket"]
    wanted = Filter(
        frozenset(senders) | _numbers(socket, sending_pods),
        frozenset(receivers) | _numbers(socket, receiving_pods),
        frozenset(related),
    )
    printer = Printer(wanted, _form(output, numeric, verbose, as_hex), _lost_form(output))
    asked = kinds or tuple(kind.name.lower() for kind in KINDS)
    with contextlib.suppress(KeyboardInterrupt):
        for frame in _listen(socket, ",".join(asked)):
            printer.frame(frame)


def _listen(socket: str, kinds: str) -> Iterator[Frame]:
    """Raises: ClickException where nobody answers, and when the agent ends."""
    from statedb.errors import BrokenAnswer, StateDBError, Unreachable
    from statedb.web.unix_http import ask

    try:
        with ask(socket, PATH, {"kinds": kinds}, SILENCE_S) as answer:
            yield from frames(answer.pieces())
    except Unreachable as error:
        raise click.ClickException(
            f"{error} It reads the events; `cilia bpf metrics list` counts drops also while none"
            " runs."
        ) from None
    except BrokenAnswer as error:
        raise click.ClickException(f"{error}: did the agent end?") from None
    except StateDBError as error:
        raise click.ClickException(str(error)) from None
    raise click.ClickException("the agent ended, and nothing reads events any more")


def _numbers(socket: str, pods: tuple[str, ...]) -> frozenset[int]:
    """Return the endpoints of pods. Raises: ClickException for a pod without one."""
    if not pods:
        return frozenset()
    numbers: dict[str, set[int]] = {}
    for row in pod_network_rows(socket, "endpoints"):
        numbers.setdefault(f"{row['Namespace']}/{row['Pod']}", set()).add(row["ID"])
    for pod in pods:
        if pod not in numbers:
            raise click.ClickException(
                f"no endpoint of this node is pod {pod}: `cilia endpoint list` shows those there"
                " are"
            )
    return frozenset(number for pod in pods for number in numbers[pod])


def _form(output: str, numeric: bool, verbose: bool, as_hex: bool) -> Callable[[Event], str]:
    if output == "json":
        return lambda event: json.dumps(lines.event_object(event))
    if verbose or as_hex:
        return lambda event: lines.paragraph(event, numeric=numeric, as_hex=as_hex)
    return lambda event: lines.line(event, numeric=numeric)


def _lost_form(output: str) -> Callable[[int, str, int | None], str]:
    if output == "json":
        return lambda *told: json.dumps(lines.lost_object(*told))
    return lines.lost_line

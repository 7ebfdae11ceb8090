# SPDX-License-Identifier: Apache-2.0
"""`cilia lb explain`: which backend a client's packets get at a service, and why."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cilia.api.client import AgentUnreachable, request
from cilia.datapath.cli.bpf_flows import BPF_ROOT
from cilia.loadbalancer.cli.service import refusal
from cilia.loadbalancer.cli.sockets import SOCKETS, sockets_of
from cilia.program.output import show
from statedb.errors import StateDBError
from statedb.shown.text import visible
from statedb.web.remote import RemoteDB

if TYPE_CHECKING:
    from bpf.lb.choice import Choice, Chooser, Flow, Settings

Address = IPv4Address | IPv6Address


class Endpoint(click.ParamType[tuple[Address, int]]):
    """`10.0.0.5:40000` or `[fd00::5]:40000`."""

    name = "IP:PORT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Address, int]:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # converted already
        host, colon, port = value.rpartition(":")
        try:
            if not colon or not 0 < int(port) < 65536:
                raise ValueError
            return ip_address(host.strip("[]")), int(port)
        except ValueError:
            self.fail(f"{value!r} is not IP:PORT, e.g. 10.0.0.5:40000 or [fd00::5]:40000")


@click.group()
def lb() -> None:
    """Service load balancing."""


@lb.command()
@click.argument("client", type=Endpoint())
@click.argument("service", metavar="SERVICE[:PORT]")
@click.option("--outside", is_flag=True, help="The client is not a pod or this node.")
@click.option(
    "--protocol",
    type=click.Choice(["TCP", "UDP", "SCTP"], case_sensitive=False),
    help="Where the service has the port with several.",
)
@BPF_ROOT
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text")
@click.pass_context
def explain(
    ctx: click.Context,
    client: tuple[Address, int],
    service: str,
    outside: bool,
    protocol: str | None,
    bpf_root: Path,
    output: str,
) -> None:
    """Say which backend a packet of CLIENT gets, what decides it, and which map entries say so.

    SERVICE is NAMESPACE/NAME or the address of a frontend; PORT is a number or the port's name.
    The answer is read from the maps that the programs use. Sockets of this node and its pods are
    translated before there is a packet: they get one of the usable backends at random, or the one
    that session affinity gave their network namespace. Where they are not, the last line says so.

    \b
    Examples:
      cilia lb explain 10.244.1.7:40000 default/web:80
      cilia lb explain 203.0.113.9:40000 192.0.2.10:30080 --outside
      cilia lb explain '[fd00::7]:40000' default/web:http -o json
    """
    from bpf.errors import BPFError, NotFound

    wanted = protocol.upper() if protocol else None
    try:
        frontends = list(_frontends(ctx.obj["socket"], service, client[0].version, wanted))
        options = _options(ctx.obj["socket"])
        chooser = _chooser(bpf_root / ctx.obj["instance"] / "maps", options)
        answers = [_answer(chooser, client, row, revision, outside) for row, revision in frontends]
        if not answers:
            rows = _rowless(service, client[0].version, wanted)
            found = (_answer(chooser, client, row, 0, outside) for row in rows)
            answers = [answer for answer in found if answer["outcome"] != "pass"]
    except NotFound:
        raise click.ClickException(
            "no maps are pinned: no agent of this instance has run"
        ) from None
    except BPFError as error:
        raise click.ClickException(f"{error}: run this as root") from None
    except (StateDBError, AgentUnreachable) as error:
        raise click.ClickException(str(error)) from None
    if not answers:
        raise click.ClickException(
            f"no frontend of IPv{client[0].version} matches {service}: see cilia service list"
        )
    lines = [visible(line) for answer in answers for line in _lines(answer)]
    if not outside and sockets_of(options) != "all":
        lines.append(f"Sockets: {SOCKETS[sockets_of(options)]}")
    answers = [{**answer, "sockets": sockets_of(options)} for answer in answers]
    show(answers, output, "".join(f"{line}\n" for line in lines))


def _frontends(
    socket: str, service: str, version: int, protocol: str | None
) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows that a name or an address means, with their revisions."""
    name, port = _split_port(service)
    db = RemoteDB(socket)
    txn = db.read_txn()
    table = db.table("frontends")
    if "/" in name:
        rows = [(row, 0) for row in table.list(txn, name, "service")]
        rows = [row for row in rows if _has_port(row[0], port)]
    else:
        rows = [(row, 0) for row in table.all(txn) if _is_at(row, name, port)]
    for row, _ in rows:
        address, _, proto = row["Address"].partition("/")
        found = table.get_row(txn, row["Address"])
        matches = protocol is None or proto.split("/")[0] == protocol
        if found and matches and (6 if address.startswith("[") else 4) == version:
            yield found


def _rowless(service: str, version: int, protocol: str | None) -> Iterator[dict[str, Any]]:
    """What stands for rows of an address that the agent has none of: the maps may have it, from
    before, while an input is unread.
    """
    host, port = _split_port(service)
    try:
        address = ip_address(host)
    except ValueError:
        return
    if address.version != version or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        return
    at = f"[{address}]:{port}" if version == 6 else f"{address}:{port}"
    for proto in (protocol,) if protocol else ("TCP", "UDP", "SCTP"):
        yield {"Address": f"{at}/{proto}", "ServiceName": "", "Type": "", "Status": {"kind": ""}}


def _split_port(text: str) -> tuple[str, str]:
    """The part before the port, and the port; an IPv6 address stands in brackets."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.lstrip(":")
    name, _, port = text.partition(":")
    return name, port


def _has_port(row: dict[str, Any], port: str) -> bool:
    return not port or port in (row["PortName"], str(row["ServicePort"]), _port_of(row))


def _is_at(row: dict[str, Any], address: str, port: str) -> bool:
    """Also a surrogate: every address of the node answers at a node port."""
    host = row["Address"].rsplit(":", 1)[0].strip("[]")
    return host in (address, "0.0.0.0", "::") and bool(port) and port == _port_of(row)


def _port_of(row: dict[str, Any]) -> str:
    return str(row["Address"].partition("/")[0].rpartition(":")[2])


def _options(socket: str) -> dict[str, Any]:
    """What the running agent told its programs, by the names of options."""
    return {row["name"]: row["value"] for row in request(socket, "/config")}


def _chooser(maps_dir: Path, options: Mapping[str, Any]) -> Chooser:
    from bpf.errors import NotFound
    from bpf.lb.choice import Chooser
    from bpf.maps.ct import CT_MAPS
    from bpf.maps.lb import LBMaps
    from bpf.maps.map import Map

    connections = {}
    for name in CT_MAPS:
        try:
            connections[name] = Map.open_pinned(maps_dir / name)
        except NotFound:
            continue  # an agent without packet programs
    return Chooser(LBMaps.open_pinned(maps_dir), _settings(options), connections)


def _settings(options: Mapping[str, Any]) -> Settings:
    from bpf.lb.choice import Settings
    from bpf.maps.lb_numbers import Algorithm

    algorithm = Algorithm.named(options["bpf-lb-algorithm"])
    # The first four bytes are the tables'.
    seed = base64.b64decode(options["bpf-lb-maglev-hash-seed"])
    seeds = (int.from_bytes(seed[4:8], "big"), int.from_bytes(seed[8:], "big"))
    return Settings(algorithm, int(options["bpf-lb-maglev-table-size"]), *seeds)


def _answer(
    chooser: Chooser,
    client: tuple[Address, int],
    row: dict[str, Any],
    revision: int,
    outside: bool,
) -> dict[str, Any]:
    from bpf.lb.choice import Flow
    from bpf.maps.text import PROTOCOL_NAMES

    numbers = {name: number for number, name in PROTOCOL_NAMES.items()}
    endpoint, _, protocol = row["Address"].partition("/")
    host, _, port = endpoint.rpartition(":")
    flow = Flow(
        client[0].packed,
        client[1],
        ip_address(host.strip("[]")).packed,
        int(port),
        numbers[protocol.split("/")[0]],
        outside,
    )
    return _as_dict(row, revision, flow, chooser.explain(flow), chooser)


def _as_dict(
    row: dict[str, Any], revision: int, flow: Flow, choice: Choice, chooser: Chooser
) -> dict[str, Any]:
    return {
        "frontend": row["Address"],
        "service": row["ServiceName"],
        "type": row["Type"],
        "revision": revision,
        "not_in_force": refusal(row),
        "id": choice.rev_nat,
        "outcome": str(choice.outcome),
        "reason": choice.reason,
        "backends": [chooser.backend_text(flow.address, number) for number in choice.backends],
        "steps": [{"map": s.map, "key": s.key, "said": s.said} for s in choice.steps],
    }


_WORDS = {
    "backend": "goes to {backends}: {reason}",
    "random": "goes to one of {backends}, chosen at random",
    "pass": "is not translated: {reason}",
    "refused": "is refused: {reason}",
}


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    words = {**answer, "backends": ", ".join(answer["backends"])}
    if answer["service"]:
        yield "{frontend} ({type} of {service}, revision {revision})".format(**answer)
    else:
        yield f"{answer['frontend']} (the agent has no row of it: see cilia status)"
    for line in answer["not_in_force"]:
        yield f"  is {line}; a packet to this address"
    yield "  " + _WORDS[answer["outcome"]].format(**words)
    for step in answer["steps"]:
        yield f"    {step['map']}[{step['key']}]: {step['said']}"

# SPDX-License-Identifier: Apache-2.0
"""The agent's options on events, with the field's names."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from bpf.events import CAPTURE_BYTES, MonitorLevel
from cilia.datapath.options import DatapathOptions
from cilia.datapath.packets import constant
from cilia.flows.packets import TCP_FLAGS
from cilia.program.values import Duration
from cilia.script.environment import parse_duration

__all__ = ["EventOptions", "packet_constants"]

_FLAGS: Final = ",".join(name.lower() for name in TCP_FLAGS)
_ALL: Final = "all"


class EventOptions(DatapathOptions):
    """What programs report of packets to who listens (`cilia monitor`)."""

    bpf_events_drop_enabled: Annotated[
        bool, Field(description="Report dropped packets to `cilia monitor`; they count anyway.")
    ] = True
    bpf_events_trace_enabled: Annotated[
        bool, Field(description="Report packets that pass to `cilia monitor`.")
    ] = True
    monitor_aggregation: Annotated[
        Literal["none", "lowest", "low", "medium", "maximum"],
        Field(
            description="Which packets that pass are reported: all, where they enter and leave a"
            " program (none), all, where they leave (lowest, low), or those that open, change or"
            " close a flow (medium, maximum)."
        ),
    ] = "medium"
    monitor_aggregation_interval: Annotated[
        Duration,
        Field(description="With medium: a flow in use is reported again after this; 0: it is not."),
    ] = "5s"
    monitor_aggregation_flags: Annotated[
        str,
        Field(
            description=f"With medium: TCP flags that change a flow, {_ALL} or a comma list of"
            f" {_FLAGS}; each is reported once a side."
        ),
    ] = "syn,fin,rst"
    trace_payloadlen: Annotated[
        int, Field(ge=1, le=CAPTURE_BYTES, description="Bytes of a packet that a report has.")
    ] = CAPTURE_BYTES

    @field_validator("monitor_aggregation_flags")
    @classmethod
    def _known_flags(cls, value: str) -> str:
        _flag_bits(value)
        return value


def _flag_bits(names: str) -> int:
    """Raises: ValueError for a name of no flag."""
    if names == _ALL:
        return sum(TCP_FLAGS.values())
    bits = 0
    for name in filter(None, (name.strip() for name in names.split(","))):
        if name.upper() not in TCP_FLAGS:
            raise ValueError(f"{name!r} is no flag of TCP: say {_ALL}, or some of {_FLAGS}")
        bits |= TCP_FLAGS[name.upper()]
    return bits


def packet_constants(options: EventOptions) -> dict[str, bytes]:
    """Return the `const volatile` variables of packet programs."""
    interval_s = round(parse_duration(options.monitor_aggregation_interval))
    values = {
        "drop_notifications": options.bpf_events_drop_enabled,
        "trace_notifications": options.bpf_events_trace_enabled,
        "monitor_aggregation": int(MonitorLevel[options.monitor_aggregation.upper()]),
        "monitor_interval_s": interval_s,
        "event_payload_bytes": options.trace_payloadlen,
    }
    flags = bytes([_flag_bits(options.monitor_aggregation_flags)])
    return {name: constant(value) for name, value in values.items()} | {"monitor_flags": flags}

# SPDX-License-Identifier: Apache-2.0
"""Options on events, and the constants that programs get of them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cilia.flows.options import EventOptions, packet_constants


def number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def test_defaults_are_the_fields() -> None:
    assert packet_constants(EventOptions()) == {
        "drop_notifications": b"\1",
        "trace_notifications": b"\1",
        "monitor_aggregation": number(3),
        "monitor_interval_s": number(5),
        "event_payload_bytes": number(128),
        "monitor_flags": b"\7",
    }


def test_each_option_is_a_constant() -> None:
    options = EventOptions(
        bpf_events_drop_enabled=False,
        bpf_events_trace_enabled=False,
        monitor_aggregation="none",
        monitor_aggregation_interval="1m",
        monitor_aggregation_flags="psh, ACK",
        trace_payloadlen=60,
    )
    assert packet_constants(options) == {
        "drop_notifications": b"\0",
        "trace_notifications": b"\0",
        "monitor_aggregation": number(0),
        "monitor_interval_s": number(60),
        "event_payload_bytes": number(60),
        "monitor_flags": b"\x18",
    }


@pytest.mark.parametrize(("flags", "bits"), [("all", 0xFF), ("", 0), ("FIN", 1)])
def test_flags_are_bits_of_the_header(flags: str, bits: int) -> None:
    options = EventOptions(monitor_aggregation_flags=flags)
    assert packet_constants(options)["monitor_flags"] == bytes([bits])


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("monitor_aggregation", "some", "'none'"),
        ("monitor_aggregation_flags", "syn,xyz", "'xyz' is no flag of TCP"),
        ("monitor_aggregation_interval", "-1s", "is negative"),
        ("trace_payloadlen", 129, "less than or equal to 128"),
        ("trace_payloadlen", 0, "greater than or equal to 1"),
    ],
)
def test_wrong_values_are_refused(name: str, value: object, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        EventOptions.model_validate({name: value})

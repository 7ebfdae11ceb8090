# SPDX-License-Identifier: Apache-2.0
"""Types of option values: durations as Go writes them, addresses to listen on."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from cilia.script.environment import parse_duration

__all__ = ["Duration", "ListenAddress", "PositiveDuration"]


def _duration(text: str) -> str:
    if parse_duration(text) < 0:
        raise ValueError(f"{text!r} is negative")
    return text


def _positive_duration(text: str) -> str:
    if parse_duration(text) <= 0:
        raise ValueError(f"{text!r} is not more than 0")
    return text


def _listen_address(text: str | None) -> str | None:
    """`host:port`, `[v6]:port` or `:port`; without a host it is loopback, never all addresses."""
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is no address: expected HOST:PORT or :PORT, e.g. :9962")
    return f"{host or '127.0.0.1'}:{port}"


Duration = Annotated[str, AfterValidator(_duration)]
PositiveDuration = Annotated[str, AfterValidator(_positive_duration)]
ListenAddress = Annotated[str | None, AfterValidator(_listen_address)]

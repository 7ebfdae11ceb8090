# SPDX-License-Identifier: Apache-2.0
"""Sampled metrics as a page for a browser: a curve a series, and nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["metrics_page"]

Series = tuple[tuple[str, str], list[float | None]]

_WIDTH, _HEIGHT = 480, 60
_HEAD = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>metrics</title>
<style>body {font-family: sans-serif} svg {background: #f4f4f4} polyline {fill: none; stroke: #05a}
td {padding: .2em 1em; vertical-align: middle}</style></head><body><table>
"""
_ROW = """<tr><td>{name}<br><small>{labels}</small></td>
<td><svg width="{width}" height="{height}"><polyline points="{points}"/></svg></td>
<td>{low:g} to {high:g}</td></tr>
"""


def metrics_page(found: Iterable[Series]) -> str:
    """`found`: name and labels of each series, and its values, the newest first."""
    rows = (_row(name, labels, newest_first) for (name, labels), newest_first in found)
    return "".join([_HEAD, *rows, "</table></body></html>\n"])


def _row(name: str, labels: str, newest_first: Sequence[float | None]) -> str:
    values = [value for value in reversed(newest_first) if value is not None]
    low, high = min(values), max(values)
    return _ROW.format(
        name=escape(name),
        labels=escape(labels),
        points=_points(values, low, high),
        low=low,
        high=high,
        width=_WIDTH,
        height=_HEIGHT,
    )


def _points(values: Sequence[float], low: float, high: float) -> str:
    """From left to right, the greatest value at the top."""
    across = _WIDTH / max(1, len(values) - 1)
    scale = _HEIGHT / ((high - low) or 1.0)
    return " ".join(
        f"{number * across:.1f},{_HEIGHT - (value - low) * scale:.1f}"
        for number, value in enumerate(values)
    )

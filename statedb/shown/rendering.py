# SPDX-License-Identifier: Apache-2.0
"""The rows of a query as a text table, as JSON or as YAML documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from statedb.errors import BadFormat
from statedb.shown.columns import columns_of, layout, table_text
from statedb.shown.plain import json_text, shown

if TYPE_CHECKING:
    from statedb.table import Table

FORMATS = ("table", "json", "yaml")


def check_format(form: str, names: Sequence[str]) -> None:
    """Raises BadFormat for a format that does not exist or does not go with `--columns`."""
    if form not in FORMATS:
        raise BadFormat(f"unknown format {form!r}: it is one of {', '.join(FORMATS)}")
    if names and form != "table":
        raise BadFormat("--columns goes with the format table only")


def value_texts(values: Iterable[Any], form: str) -> Iterator[str]:
    """Values as JSON (one indented object after the other) or as YAML documents, one by one."""
    if form == "json":
        return map(json_text, values)
    from statedb.shown.yaml_form import yaml_documents  # 30 ms that only this form pays

    return yaml_documents(values)


def summary_text(described: dict[str, Any]) -> str:
    """What `statedb.shown.answers.summary` says of the tables, as a text table."""
    rows = [["Name", "Objects", "Deleted", "Indexes", "Initializers", "Type", "Revision"]]
    for table in described["tables"]:
        cells = [
            table["name"],
            str(table["objects"]),
            str(table["deleted"]),
            ", ".join(table["indexes"]),
            ", ".join(table["pending_initializers"]) or "-",
            table["type"] or "-",
            str(table["revision"]),
        ]
        rows.append(cells)
    return layout(rows) + _held_text(described.get("oldest_snapshot"))


def _held_text(held: dict[str, Any] | None) -> str:
    """A sentence on a snapshot that is held for long: rows that were deleted since stay."""
    if held is None:
        return ""
    places = ", ".join(held["places"]) or "no task that waits"
    return f"A snapshot of {held['age_s']:.0f} s ago is still held by {places}.\n"


def render(
    table: Table[Any], objects: Iterable[Any], form: str = "table", names: Sequence[str] = ()
) -> str:
    """The objects as text; `names` are the columns of a text table, headed as typed."""
    check_format(form, names)
    if form == "table":
        return table_text(columns_of(table), objects, names)
    return "".join(value_texts((shown(table, obj) for obj in objects), form))

# SPDX-License-Identifier: Apache-2.0
"""``rules``: the policy routing rules of the node, as the kernel has them.

The reflector of devices alone writes the rows.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import Prefix
from tables.node.routes import table_text

TABLE_NAME: Final = "rules"


class RuleAction(IntEnum):
    UNSPEC = 0
    TO_TABLE = 1
    GOTO = 2
    NOP = 3
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


class Rule(msgspec.Struct, frozen=True, gc=False):
    """A rule is nothing but its selector and its action: all fields together are its key."""

    family: int  # AF_INET or AF_INET6
    priority: int
    table: int
    source: Prefix | None = None  # None: all
    destination: Prefix | None = None
    mark: int = 0
    mask: int = 0
    input_device: str = ""
    output_device: str = ""
    action: int = RuleAction.TO_TABLE
    invert: bool = False
    protocol: int = 0  # RTPROT_*: who made it


RuleKey = tuple[int, int, int, bytes, bytes, int, int, str, str, int, bool, int]


def rule_key(rule: Rule) -> RuleKey:
    return (
        rule.priority,
        rule.family,
        rule.table,
        rule.source or b"",
        rule.destination or b"",
        rule.mark,
        rule.mask,
        rule.input_device,
        rule.output_device,
        rule.action,
        rule.invert,
        rule.protocol,
    )


def mark_text(mark: int, mask: int) -> str:
    """``0x200/0xf00``; empty where the mark is not looked at."""
    return f"{mark:#x}/{mask:#x}" if mark or mask else ""


def _priority(rule: Rule) -> int:
    return rule.priority


ID: Final = Index("id", key=rule_key)
PRIORITY: Final = Index("priority", key=_priority, unique=False, parse=int)

COLUMNS: Final = (
    Column("Priority", lambda rule: str(rule.priority)),
    Column("Family", lambda rule: "IPv4" if rule.family == 2 else "IPv6"),
    Column("From", lambda rule: "all" if rule.source is None else str(rule.source)),
    Column("To", lambda rule: "all" if rule.destination is None else str(rule.destination)),
    Column("Mark", lambda rule: mark_text(rule.mark, rule.mask)),
    Column("InputDevice", lambda rule: rule.input_device),
    Column("OutputDevice", lambda rule: rule.output_device),
    Column("Table", lambda rule: table_text(rule.table)),
    Column("Protocol", lambda rule: str(rule.protocol)),
)


def new_rules_table(db: DB) -> RWTable[Rule]:
    """Registers ``rules`` with the database."""
    return new_table(db, TABLE_NAME, ID, PRIORITY, columns=COLUMNS, row_type=Rule)

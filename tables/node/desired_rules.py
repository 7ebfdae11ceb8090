# SPDX-License-Identifier: Apache-2.0
"""``desired-rules``: the policy routing rules that this node is to have because we want it.

The reconciler (`reconcilers/node/rules.py`) puts them into the kernel with our protocol number and
writes back ``status``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.node.desired_routes import PROTOCOL_CILIA
from tables.node.routes import table_text
from tables.node.rules import Rule, RuleKey, mark_text, rule_key
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "desired-rules"


class DesiredRule(msgspec.Struct, frozen=True, gc=False):
    owner: str
    rule: Rule
    status: Status = msgspec.field(default_factory=pending)


def desired_rule(owner: str, rule: Rule) -> DesiredRule:
    """A pending row; the rule gets our protocol number, whatever it had."""
    return DesiredRule(owner, msgspec.structs.replace(rule, protocol=PROTOCOL_CILIA))


def rule_of(row: DesiredRule) -> RuleKey:
    return rule_key(row.rule)


def _key(row: DesiredRule) -> tuple[str, RuleKey]:
    return (row.owner, rule_key(row.rule))


def rule_text(rule: Rule) -> str:
    """``priority 20 from all to 10.0.0.0/8 fwmark 0x200/0xf00 table main``."""
    parts = [f"priority {rule.priority}"]
    if rule.invert:
        parts.append("not")
    parts.append(f"from {rule.source or 'all'} to {rule.destination or 'all'}")
    if rule.mark or rule.mask:
        parts.append(f"fwmark {mark_text(rule.mark, rule.mask)}")
    if rule.input_device:
        parts.append(f"iif {rule.input_device}")
    if rule.output_device:
        parts.append(f"oif {rule.output_device}")
    parts.append(f"table {table_text(rule.table)}")
    return " ".join(parts)


ID: Final = Index("id", key=_key)
RULE: Final = Index("rule", key=rule_of, unique=False)

COLUMNS: Final = (
    Column("Owner", lambda row: row.owner),
    Column("Family", lambda row: "IPv4" if row.rule.family == 2 else "IPv6"),
    Column("Rule", lambda row: rule_text(row.rule)),
    *STATUS_COLUMNS,
)


def new_desired_rules_table(db: DB) -> RWTable[DesiredRule]:
    """Registers ``desired-rules`` with the database."""
    return new_table(db, TABLE_NAME, ID, RULE, columns=COLUMNS, row_type=DesiredRule)

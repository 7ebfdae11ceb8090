# SPDX-License-Identifier: Apache-2.0
"""`desired-rules` into the kernel's policy routing.

Our rules carry our protocol number; no other is removed. Newer kernels let a rule of ours stand
beside an equal one of someone else; where the kernel refuses that, theirs is as good as ours.
"""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from cilia.linux.errors import NetlinkError
from cilia.linux.netlink import Netlink
from cilia.linux.requests import add_rule, delete_rule
from cilia.linux.rtnl import RuleMessage
from reconcilers.kernel_watch import Concerns
from statedb import Change, ReadTxn, Table
from tables.addressing import IP, Prefix
from tables.node.desired_routes import PROTOCOL_CILIA
from tables.node.desired_rules import RULE, DesiredRule, rule_of, rule_text
from tables.node.rules import Rule, rule_key

__all__ = ["RuleOperations", "concerns_rules"]

# The numbers of a rule without its maker: what the kernel itself compares.
Selector = tuple[Any, ...]


class RuleOperations:
    """Operations with verification; see `reconcilers.operations`."""

    def __init__(self, netlink: Netlink, desired: Table[DesiredRule]) -> None:
        self._netlink = netlink
        self._desired = desired
        # Of the last read-back: what is there without being ours.
        self._foreign: set[Selector] = set()

    def update(self, txn: ReadTxn, revision: int, obj: DesiredRule) -> None:
        try:
            self._netlink.request(add_rule(_message(obj.rule)))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise

    def delete(self, txn: ReadTxn, revision: int, obj: DesiredRule) -> None:
        if not self._desired.list(txn, rule_of(obj), RULE):  # else another owner wants it
            self._remove(lambda selector: selector == selector_of(obj.rule))

    def prune(self, txn: ReadTxn, objects: Iterable[DesiredRule]) -> None:
        keep = {selector_of(obj.rule) for obj in objects}
        self._remove(lambda selector: selector not in keep)

    def _remove(self, unwanted: Any) -> None:
        for selector, message in self._read().items():
            if message.protocol == PROTOCOL_CILIA and unwanted(selector):
                try:
                    self._netlink.request(delete_rule(message))
                except NetlinkError as error:
                    if error.errno != errno.ENOENT:
                        raise

    def _read(self) -> dict[Selector, RuleMessage]:
        """By selector; where ours and a foreign one are equal, ours."""
        found: dict[Selector, RuleMessage] = {}
        for message in self._netlink.rules():
            selector = _selector_of_message(message)
            if selector not in found or message.protocol == PROTOCOL_CILIA:
                found[selector] = message
        return found

    # Verify

    def actual(self) -> Mapping[Hashable, Any]:
        found = self._read()
        ours = {key for key, message in found.items() if message.protocol == PROTOCOL_CILIA}
        self._foreign = found.keys() - ours
        return dict.fromkeys(ours, True)

    def expected(
        self, txn: ReadTxn, objects: Iterable[DesiredRule]
    ) -> Iterable[tuple[Hashable, Any, DesiredRule]]:
        for obj in objects:
            selector = selector_of(obj.rule)
            if selector not in self._foreign:
                yield selector, True, obj

    def describe(self, key: Hashable, value: Any | None) -> tuple[str, str]:
        assert isinstance(key, tuple)
        priority, family, table, source, destination, *rest = key
        mark, mask, input_device, output_device, action, invert = rest
        rule = Rule(
            family=family,
            priority=priority,
            table=table,
            source=Prefix(source) if source else None,
            destination=Prefix(destination) if destination else None,
            mark=mark,
            mask=mask,
            input_device=input_device,
            output_device=output_device,
            action=action,
            invert=invert,
        )
        name = f"{'IPv4' if family == 2 else 'IPv6'} {rule_text(rule)}"
        return name, "" if value is None else "present"


def concerns_rules(desired: Table[DesiredRule]) -> Concerns[Rule]:
    """Which changes of the table `rules` may be drift."""

    def concerns(txn: ReadTxn, change: Change[Rule]) -> bool:
        key = (*rule_key(change.obj)[:-1], PROTOCOL_CILIA)
        wanted = bool(desired.list(txn, key, RULE))
        ours = change.obj.protocol == PROTOCOL_CILIA
        return wanted if change.deleted else ours and not wanted

    return concerns


def selector_of(rule: Rule) -> Selector:
    return rule_key(rule)[:-1]


def _selector_of_message(message: RuleMessage) -> Selector:
    return (
        message.priority,
        message.family,
        message.table,
        _prefix(message.source, message.source_len),
        _prefix(message.destination, message.destination_len),
        message.mark,
        message.mask,
        message.input_device,
        message.output_device,
        message.action,
        message.invert,
    )


def _prefix(packed: bytes, length: int) -> bytes:
    return Prefix.of(IP.from_packed(packed), length) if packed else b""


def _message(rule: Rule) -> RuleMessage:
    return RuleMessage(
        family=rule.family,
        priority=rule.priority,
        table=rule.table,
        action=rule.action,
        protocol=PROTOCOL_CILIA,
        source=rule.source.ip.packed if rule.source else b"",
        source_len=rule.source.length if rule.source else 0,
        destination=rule.destination.ip.packed if rule.destination else b"",
        destination_len=rule.destination.length if rule.destination else 0,
        mark=rule.mark,
        mask=rule.mask,
        input_device=rule.input_device,
        output_device=rule.output_device,
        invert=rule.invert,
    )

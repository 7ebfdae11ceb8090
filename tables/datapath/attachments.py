# SPDX-License-Identifier: Apache-2.0
"""``attachments``: which program runs at which hook of which device or cgroup, and in what order.

The reconciler (`reconcilers/datapath/attachments.py`) attaches them and writes back ``status``
and what it learned. Programs are named by the path of their pin: whoever loads a program pins it
first.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from bpf.xdp import XdpMode
from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "attachments"


class AttachHook(StrEnum):
    """Hooks of a device, then hooks of a cgroup."""

    INGRESS = "ingress"
    EGRESS = "egress"
    XDP = "xdp"
    CONNECT4 = "connect4"
    CONNECT6 = "connect6"
    SENDMSG4 = "sendmsg4"
    SENDMSG6 = "sendmsg6"
    RECVMSG4 = "recvmsg4"
    RECVMSG6 = "recvmsg6"
    GETPEERNAME4 = "getpeername4"
    GETPEERNAME6 = "getpeername6"
    POST_BIND4 = "post_bind4"
    POST_BIND6 = "post_bind6"
    SOCK_RELEASE = "sock_release"

    @property
    def is_device(self) -> bool:
        return self in (AttachHook.INGRESS, AttachHook.EGRESS, AttachHook.XDP)


class OrderKind(StrEnum):
    FIRST = "first"
    LAST = "last"
    BEFORE = "before"
    AFTER = "after"


class AttachOrder(msgspec.Struct, frozen=True):
    """Where in the list of a hook, when it is attached: others may come before or behind later.

    ``before`` and ``after`` are relative to the link of another owner's row at the same hook, or to
    a program's number; the former is kept to for as long as both are there.
    """

    kind: OrderKind = OrderKind.LAST
    owner: str = ""
    program_id: int = 0

    def __str__(self) -> str:
        if self.owner:
            return f"{self.kind} {self.owner}"
        return f"{self.kind} program {self.program_id}" if self.program_id else str(self.kind)


FIRST: Final = AttachOrder(OrderKind.FIRST)
LAST: Final = AttachOrder(OrderKind.LAST)


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    # What is wanted.
    target: str  # name of a device, or directory of a cgroup
    hook: AttachHook
    owner: str  # one program an owner at a hook
    program: str  # path of the program's pin
    order: AttachOrder = LAST
    xdp_mode: XdpMode = XdpMode.ANY
    # A driver that cannot run it is as good as one that does; link_id stays 0 then.
    optional: bool = False
    # Written by the reconciler, valid while the status is done.
    target_id: int = 0  # index of the device, id of the cgroup
    program_id: int = 0
    link_id: int = 0  # 0 for a tc filter
    status: Status = msgspec.field(default_factory=pending)


AttachmentKey = tuple[str, AttachHook, str]


def attachment_key(row: Attachment) -> AttachmentKey:
    return (row.target, row.hook, row.owner)


def check(row: Attachment) -> None:
    """Raises ValueError for a row that cannot be, with the field's name."""
    if not row.owner:
        raise ValueError("owner: an attachment must have one")
    if row.hook.is_device == row.target.startswith("/"):
        raise ValueError(f"target: {row.target!r} has no hook {row.hook}")
    relative = row.order.kind in (OrderKind.BEFORE, OrderKind.AFTER)
    if relative != bool(row.order.owner or row.order.program_id):
        raise ValueError("order: before and after, and only they, need an owner or a program")
    if row.order.owner == row.owner:
        raise ValueError("order: relative to itself")


def _target(row: Attachment) -> str:
    return row.target


def _parse_key(text: str) -> tuple[Any, ...]:
    """``TARGET[:HOOK[:OWNER]]``."""
    target, _, rest = text.partition(":")
    if not rest:
        return (target,)
    hook, _, owner = rest.partition(":")
    return (target, AttachHook(hook), owner) if owner else (target, AttachHook(hook))


ID: Final = Index("id", key=attachment_key, parse=_parse_key)
TARGET: Final = Index("target", key=_target, unique=False, parse=str)

COLUMNS: Final = (
    Column("Target", lambda row: row.target),
    Column("Hook", lambda row: row.hook.value),
    Column("Owner", lambda row: row.owner),
    Column("Program", lambda row: row.program),
    Column("Order", lambda row: str(row.order)),
    Column("ProgramID", lambda row: str(row.program_id or "")),
    Column("LinkID", lambda row: str(row.link_id or "")),
    *STATUS_COLUMNS,
)


def new_attachments_table(db: DB) -> RWTable[Attachment]:
    """Registers ``attachments`` with the database."""
    return new_table(db, TABLE_NAME, ID, TARGET, columns=COLUMNS, row_type=Attachment)

# SPDX-License-Identifier: Apache-2.0
"""Programs on a device's clsact qdisc: the fallback where the kernel has no TCX (before 6.6).

A filter is no link: it has no pin and no owner, stays until it is deleted or the device goes, and
is found again by its place, which is (direction, priority, handle). Replacing the filter at its
place swaps the program in one step. libbpf speaks the netlink; the calls work in the network
namespace of the calling thread.
"""

from __future__ import annotations

from contextlib import suppress
from enum import IntEnum
from typing import Any, NamedTuple

from bpf.descriptors import Fd
from bpf.errors import Exists, Invalid, NotFound
from bpf.libbpf import check, lib, options


class Direction(IntEnum):
    """``enum bpf_tc_attach_point``"""

    INGRESS = 1
    EGRESS = 2


_REPLACE = 1


class Filter(NamedTuple):
    """One program in its place."""

    ifindex: int
    direction: Direction
    priority: int
    handle: int


def attach(program: Fd, where: Filter) -> int:
    """Put ``program`` at its place, atomically replacing what is there; returns the program's id.

    Makes the qdisc if there is none. Raises: NoPrivilege, DeviceGone, Invalid.
    """
    hook = _hook(where)
    with suppress(Exists):  # made before, by us or someone else
        check(lib.bpf_tc_hook_create(hook), f"add clsact to interface {where.ifindex}")
    opts = _options(where, prog_fd=program.number, flags=_REPLACE)
    check(lib.bpf_tc_attach(hook, opts), f"attach to {_name(where)}")
    return int(opts.prog_id)


def attached(where: Filter) -> int | None:
    """Id of the program at a place. Raises: DeviceGone."""
    opts = _options(where)
    try:
        check(lib.bpf_tc_query(_hook(where), opts), f"read {_name(where)}")
    except (NotFound, Invalid):  # no such filter; no clsact at all
        return None
    return int(opts.prog_id)


def detach(where: Filter) -> None:
    """Remove the filter if it is there; the qdisc stays, others may use it."""
    try:
        check(lib.bpf_tc_detach(_hook(where), _options(where)), f"detach from {_name(where)}")
    except (NotFound, Invalid):
        return


def _hook(where: Filter) -> Any:
    return options("bpf_tc_hook", ifindex=where.ifindex, attach_point=where.direction)


def _options(where: Filter, **fields: int) -> Any:
    return options("bpf_tc_opts", handle=where.handle, priority=where.priority, **fields)


def _name(where: Filter) -> str:
    return f"clsact {where.direction.name.lower()} of interface {where.ifindex}"

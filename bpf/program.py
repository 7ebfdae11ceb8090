# SPDX-License-Identifier: Apache-2.0
"""One BPF program: as it stands in an object, and as it is in the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bpf.descriptors import Fd
from bpf.libbpf import check, decode, ffi, lib, options
from bpf.pins import open_pin

#: The kernel's own limit of maps of one program.
MOST_MAPS = 64


class ProgramInfo(NamedTuple):
    """The kernel's description of a loaded program."""

    type: str
    id: int
    name: str
    tag: str
    verified_instructions: int
    translated_size_bytes: int
    jited_size_bytes: int
    run_time_ns: int
    run_count: int


class RunResult(NamedTuple):
    """Outcome of one BPF_PROG_RUN."""

    retval: int
    data: bytes
    context: bytes
    duration_ns: int


class Program(Fd):
    """A loaded program."""

    __slots__ = ("expected_attach_type", "name", "section")

    def __init__(
        self, fd: int, name: str, section: str = "", expected_attach_type: int = 0
    ) -> None:
        super().__init__(fd)
        self.name = name
        self.section = section
        self.expected_attach_type = expected_attach_type

    @classmethod
    def open_pinned(cls, path: Path) -> Program:
        """The program pinned at ``path``. Raises: NotFound."""
        return cls._from_fd(open_pin(path))

    @classmethod
    def by_id(cls, program_id: int) -> Program:
        """A program by the kernel's number. Raises: NotFound when it is gone."""
        return cls._from_fd(check(lib.bpf_prog_get_fd_by_id(program_id), f"program {program_id}"))

    @classmethod
    def _from_fd(cls, fd: int) -> Program:
        program = cls(fd, "")
        program.name = program.info().name
        return program

    def info(self) -> ProgramInfo:
        """Ask the kernel."""
        out = ffi.new("struct cilia_prog_info *")
        check(lib.cilia_prog_info(self.number, out), f"info of program {self.name}")
        return ProgramInfo(
            type=decode(lib.libbpf_bpf_prog_type_str(out.type)),
            id=out.id,
            name=decode(out.name),
            tag=bytes(out.tag).hex(),
            verified_instructions=out.verified_insns,
            translated_size_bytes=out.xlated_len,
            jited_size_bytes=out.jited_len,
            run_time_ns=out.run_time_ns,
            run_count=out.run_count,
        )

    def map_ids(self) -> set[int]:
        """The kernel's numbers of the maps that it uses."""
        ids = ffi.new("uint32_t[]", MOST_MAPS)
        count = check(
            lib.cilia_prog_maps(self.number, ids, MOST_MAPS), f"maps of program {self.name}"
        )
        return set(ffi.unpack(ids, count))

    def run(
        self,
        data: bytes = b"",
        context: bytes = b"",
        *,
        repeat: int = 0,
        room_bytes: int = 256,
    ) -> RunResult:
        """BPF_PROG_RUN: the program on a packet and a context of the caller's.

        ``context``: the hook's context struct (``struct __sk_buff``, ``struct xdp_md``), empty for
        the kernel's default. ``room_bytes``: how much the program may make the packet longer.
        ``duration_ns`` is the mean of ``repeat`` runs.

        Raises: Unsupported for program types that the kernel cannot run this way; Invalid for a
        packet shorter than an Ethernet header or a context with fields that may not be set.
        """
        data_out = ffi.new("char[]", len(data) + room_bytes)
        context_out = ffi.new("char[]", max(len(context), 1))
        data_in = ffi.from_buffer(data)
        context_in = ffi.from_buffer(context)
        opts = options("bpf_test_run_opts", repeat=repeat)
        if data:
            opts.data_in, opts.data_size_in = data_in, len(data)
            opts.data_out, opts.data_size_out = data_out, len(data) + room_bytes
        if context:
            opts.ctx_in, opts.ctx_size_in = context_in, len(context)
            opts.ctx_out, opts.ctx_size_out = context_out, len(context)
        check(lib.bpf_prog_test_run_opts(self.number, opts), f"run program {self.name}")
        return RunResult(
            retval=opts.retval,
            data=bytes(ffi.buffer(data_out, opts.data_size_out)) if data else b"",
            context=bytes(ffi.buffer(context_out, opts.ctx_size_out)) if context else b"",
            duration_ns=opts.duration,
        )

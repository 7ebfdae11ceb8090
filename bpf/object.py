# SPDX-License-Identifier: Apache-2.0
"""A BPF object file on its way into the kernel: open, configure, load.

::

    with Object.open("sock", elf) as obj:
        obj.set_constant("host_netns_cookie", cookie)      # const volatile, before load
        obj.reuse("cilia_lb4_svc", pinned_map)             # maps that exist already
        obj.load()                                         # LoadError with the verifier's reason
        connect4 = obj.program("connect4")                 # owned by the caller, outlives obj

Constants are set before load so that the verifier removes what they switch off; no compiler runs on
a node.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bpf.descriptors import Owned
from bpf.errors import LoadError, NotFound
from bpf.libbpf import check, decode, ffi, lib, options, take_log
from bpf.maps.map import Map
from bpf.program import Program


class MapDefinition(NamedTuple):
    """A map as the object wants it."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class Object(Owned):
    """An open BPF object. Not safe for use from two threads at once."""

    def __init__(self, name: str, pointer: Any, elf: bytes) -> None:
        self.name = name
        self._pointer = pointer
        # libbpf reads the ELF again during load.
        self._elf = elf

    @classmethod
    def open(cls, name: str, elf: bytes) -> Object:
        """Parse an ELF file. Raises: LoadError when libbpf cannot read it."""
        c_name = ffi.new("char[]", name.encode())
        opts = options("bpf_object_open_opts", object_name=c_name)
        take_log()
        pointer = lib.bpf_object__open_mem(elf, len(elf), opts)
        errno = ffi.errno
        log = take_log()
        if pointer == ffi.NULL:
            raise LoadError(name, errno, log)
        return cls(name, pointer, elf)

    def close(self) -> None:
        """Free the object; programs and maps taken from it stay open."""
        pointer, self._pointer = getattr(self, "_pointer", None), None
        if pointer is not None:
            lib.bpf_object__close(pointer)

    # -- before load --

    def set_constant(self, name: str, value: bytes) -> None:
        """Give a ``const volatile`` variable its value, in host byte order and of exactly its size.

        Raises: NotFound when there is no such variable, Invalid when its size differs.
        """
        rc = lib.cilia_set_rodata(self._pointer, name.encode(), value, len(value))
        check(rc, f"set constant {name} of {self.name}")

    def map_definitions(self) -> list[MapDefinition]:
        """The maps that the source defines, without the compiler's own sections."""
        return [
            MapDefinition(
                decode(lib.bpf_map__name(pointer)),
                lib.bpf_map__type(pointer),
                lib.bpf_map__key_size(pointer),
                lib.bpf_map__value_size(pointer),
                lib.bpf_map__max_entries(pointer),
                lib.bpf_map__map_flags(pointer),
            )
            for pointer in self._maps()
            if not lib.bpf_map__is_internal(pointer)
        ]

    def set_max_entries(self, name: str, max_entries: int) -> None:
        """Size a map before load."""
        rc = lib.bpf_map__set_max_entries(self._map(name), max_entries)
        check(rc, f"size map {name}")

    def reuse(self, name: str, existing: Map) -> None:
        """Let the programs use a map that exists; that its layout fits is the caller's duty."""
        check(lib.bpf_map__reuse_fd(self._map(name), existing.number), f"reuse map {name}")

    def keep_programs(self, wanted: Callable[[str], bool]) -> None:
        """Load only the programs whose names are wanted."""
        for pointer in self._programs():
            name = decode(lib.bpf_program__name(pointer))
            check(lib.bpf_program__set_autoload(pointer, wanted(name)), f"select program {name}")

    # -- load, and after --

    def load(self) -> None:
        """Create the maps and load the programs, all or nothing.

        Raises: LoadError with libbpf's and the verifier's words.
        """
        take_log()
        rc = lib.bpf_object__load(self._pointer)
        log = take_log()
        if rc:
            raise LoadError(self.name, -rc, log)

    def program(self, name: str) -> Program:
        """A loaded program, owned by the caller. Raises: NotFound."""
        for program in self.programs():
            if program.name == name:
                return program
        raise NotFound(f"program {name} of {self.name}", 2)

    def programs(self) -> list[Program]:
        """All loaded programs, owned by the caller."""
        return [
            Program(
                os.dup(check(lib.bpf_program__fd(pointer), "descriptor of program")),
                decode(lib.bpf_program__name(pointer)),
                decode(lib.bpf_program__section_name(pointer)),
                lib.bpf_program__expected_attach_type(pointer),
            )
            for pointer in self._programs()
            if lib.bpf_program__autoload(pointer)
        ]

    def map(self, name: str) -> Map:
        """A map of the loaded object, owned by the caller. Raises: NotFound."""
        return Map(os.dup(check(lib.bpf_map__fd(self._map(name)), f"descriptor of map {name}")))

    def _programs(self) -> Iterator[Any]:
        pointer = lib.bpf_object__next_program(self._pointer, ffi.NULL)
        while pointer != ffi.NULL:
            yield pointer
            pointer = lib.bpf_object__next_program(self._pointer, pointer)

    def _maps(self) -> Iterator[Any]:
        pointer = lib.bpf_object__next_map(self._pointer, ffi.NULL)
        while pointer != ffi.NULL:
            yield pointer
            pointer = lib.bpf_object__next_map(self._pointer, pointer)

    def _map(self, name: str) -> Any:
        for pointer in self._maps():
            if decode(lib.bpf_map__name(pointer)) == name:
                return pointer
        raise NotFound(f"map {name} of {self.name}", 2)

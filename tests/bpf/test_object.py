# SPDX-License-Identifier: Apache-2.0
"""Objects from ELF to kernel: constants, map sizes, reuse, and what a refusal says."""

from __future__ import annotations

import gc

import pytest

from bpf.errors import Invalid, LoadError, NotFound
from bpf.maps.map import Map
from bpf.maps.types import MapType
from bpf.object import Object
from bpf.program import Program
from tests.bpf.sources import build
from tests.bpf.world import open_descriptors

pytestmark = pytest.mark.root

CONSTANTS = """
const volatile __u32 number = 1;
const volatile __u8 flag = 0;
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 4);
} counters SEC(".maps");

SEC("tc") int first(struct __sk_buff *ctx)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&counters, &key);

	if (count)
		*count += number;
	return flag ? 100 : number;
}
SEC("tc") int second(struct __sk_buff *ctx) { return 7; }
"""

REFUSED = """
SEC("tc") int bad(struct __sk_buff *ctx)
{
	char *data = (char *)(long)ctx->data;

	return *data;
}
"""

PACKET = bytes(64)


def test_constants_are_set_before_load() -> None:
    with Object.open("test", build(CONSTANTS)) as obj:
        obj.set_constant("number", (42).to_bytes(4, "little"))
        obj.load()
        assert obj.program("first").run(PACKET).retval == 42


def test_dead_branch_is_removed_by_a_constant() -> None:
    with Object.open("test", build(CONSTANTS)) as off, Object.open("test", build(CONSTANTS)) as on:
        on.set_constant("flag", b"\1")
        on.load()
        off.load()
        assert on.program("first").run(PACKET).retval == 100
        assert off.program("first").run(PACKET).retval == 1


def test_unknown_constant_and_wrong_size_are_refused() -> None:
    with Object.open("test", build(CONSTANTS)) as obj:
        with pytest.raises(NotFound, match="nothere"):
            obj.set_constant("nothere", b"\0")
        with pytest.raises(Invalid, match="number"):
            obj.set_constant("number", b"\0")


def test_map_definitions_leave_out_the_compilers_sections() -> None:
    with Object.open("test", build(CONSTANTS)) as obj:
        assert [
            (d.name, d.type, d.key_size, d.value_size, d.max_entries) for d in obj.map_definitions()
        ] == [("counters", MapType.ARRAY, 4, 8, 4)]


def test_size_is_chosen_before_load() -> None:
    with Object.open("test", build(CONSTANTS)) as obj:
        obj.set_max_entries("counters", 9)
        obj.load()
        assert obj.map("counters").max_entries == 9


def test_reused_map_is_the_one_that_programs_write() -> None:
    existing = Map.create(MapType.ARRAY, "counters", 4, 8, 4)
    with Object.open("test", build(CONSTANTS)) as obj:
        obj.reuse("counters", existing)
        obj.load()
        obj.program("first").run(PACKET, repeat=5)
    assert existing.lookup(bytes(4)) == (5).to_bytes(8, "little")


def test_only_wanted_programs_are_loaded() -> None:
    with Object.open("test", build(CONSTANTS)) as obj:
        obj.keep_programs(lambda name: name == "second")
        obj.load()
        assert [program.name for program in obj.programs()] == ["second"]
        with pytest.raises(NotFound):
            obj.program("first")


def test_program_outlives_its_object() -> None:
    with Object.open("test", build(CONSTANTS)) as obj:
        obj.load()
        program = obj.program("second")
    assert program.run(PACKET).retval == 7
    info = program.info()
    assert (info.name, info.type) == ("second", "sched_cls")
    assert info.verified_instructions > 0
    assert Program.by_id(info.id).name == "second"


def test_refused_program_says_why_in_a_few_lines() -> None:
    with Object.open("test", build(REFUSED)) as obj, pytest.raises(LoadError) as caught:
        obj.load()
    text = str(caught.value)
    assert "R1 offset is outside of the packet" in text
    assert len(text.splitlines()) < 40
    assert "processed" not in text
    assert len(caught.value.log) > len(text) // 2


def test_what_is_no_elf_is_refused() -> None:
    with pytest.raises(LoadError, match="garbage"):
        Object.open("garbage", b"this is no ELF file")


def test_failure_and_success_leave_no_descriptor() -> None:
    gc.collect()
    before = open_descriptors()
    for _ in range(3):
        with Object.open("test", build(REFUSED)) as obj, pytest.raises(LoadError):
            obj.load()
        with Object.open("test", build(CONSTANTS)) as obj:
            obj.load()
            for program in obj.programs():
                program.close()
            obj.map("counters").close()
    assert open_descriptors() == before


def test_forgotten_objects_are_closed_with_their_last_reference() -> None:
    gc.collect()
    before = open_descriptors()
    obj = Object.open("test", build(CONSTANTS))
    obj.load()
    held = [obj.map("counters"), *obj.programs()]
    assert len(open_descriptors()) > len(before)
    del obj, held
    gc.collect()
    assert open_descriptors() == before


def test_program_changes_the_packet_it_is_run_on() -> None:
    source = """
    SEC("xdp") int swap(struct xdp_md *ctx)
    {
        __u8 *data = (void *)(long)ctx->data;
        if (data + 14 > (__u8 *)(long)ctx->data_end)
            return XDP_ABORTED;
        data[0] = 0xee;
        return bpf_xdp_adjust_head(ctx, -4) ? XDP_ABORTED : XDP_TX;
    }
    """
    with Object.open("test", build(source)) as obj:
        obj.load()
        result = obj.program("swap").run(PACKET)
    assert result.retval == 3
    assert len(result.data) == len(PACKET) + 4
    assert result.data[4] == 0xEE


def test_program_reads_and_writes_the_context_it_is_given() -> None:
    source = """
    SEC("tc") int mark(struct __sk_buff *ctx)
    {
        ctx->mark = ctx->mark + ctx->priority;
        return 0;
    }
    """
    context = bytearray(192)
    context[8:12] = (5).to_bytes(4, "little")  # mark
    context[32:36] = (6).to_bytes(4, "little")  # priority
    with Object.open("test", build(source)) as obj:
        obj.load()
        result = obj.program("mark").run(PACKET, bytes(context))
    assert int.from_bytes(result.context[8:12], "little") == 11

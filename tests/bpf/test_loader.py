# SPDX-License-Identifier: Apache-2.0
"""Several objects on the same pinned maps."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpf import compile as bpf_compile
from bpf.errors import Invalid, NotFound
from bpf.loader import Loader
from tests.bpf.sources import build

pytestmark = pytest.mark.root

MAP = """
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __type(key, __u32);
    __type(value, %s);
    __uint(max_entries, 8);
} %s SEC(".maps");
"""
PROGRAM = """
const volatile __u32 %s = 0;
SEC("tc") int %s(struct __sk_buff *skb)
{
    __u32 key = %s;
    return bpf_map_lookup_elem(&shared, &key) ? 0 : 2;
}
"""


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sources by name, compiled when a loader asks for them."""
    sources = {
        "one": MAP % ("__u32", "shared") + MAP % ("__u64", "only_one") + PROGRAM % ("a", "f", "a"),
        "two": MAP % ("__u32", "shared") + PROGRAM % ("b", "g", "b"),
    }
    monkeypatch.setattr(
        bpf_compile, "load_object", lambda name, *, cache_dir=None: build(sources[name])
    )
    return sources


@pytest.fixture
def maps_dir(bpffs: Path) -> Path:
    path = bpffs / "maps"
    path.mkdir()
    return path


def test_objects_share_maps_and_each_takes_its_constants(
    objects: dict[str, str], maps_dir: Path
) -> None:
    loader = Loader(["one", "two"], maps_dir)
    loader.open_maps()
    assert sorted(loader.maps) == ["only_one", "shared"]
    assert sorted(path.name for path in maps_dir.iterdir()) == ["only_one", "shared"]
    loader.maps["shared"].update(b"\7\0\0\0", b"\1\0\0\0")
    found = {
        program.name: program.run(bytes(64)).retval
        for program in loader.load({"a": b"\7\0\0\0", "b": b"\6\0\0\0"})
    }
    assert found == {"f": 0, "g": 2}
    loader.close()


def test_an_object_that_comes_later_makes_only_what_is_missing(
    objects: dict[str, str], maps_dir: Path
) -> None:
    with_two = Loader(["two"], maps_dir)
    with_two.open_maps()
    kept = with_two.maps["shared"].info.id
    with_two.close()
    both = Loader(["one", "two"], maps_dir, carried=frozenset({"shared"}))
    both.open_maps()
    assert both.maps["shared"].info.id == kept
    assert both.fresh == ["only_one"]
    both.settle()
    assert sorted(path.name for path in maps_dir.iterdir()) == ["only_one", "shared"]
    both.close()


def test_two_layouts_of_one_map_are_refused(objects: dict[str, str], maps_dir: Path) -> None:
    objects["two"] = MAP % ("__u64", "shared") + PROGRAM % ("b", "g", "b")
    with pytest.raises(Invalid, match="two wants another layout of shared"):
        Loader(["one", "two"], maps_dir).open_maps()


def test_a_constant_that_no_object_has_is_an_error(objects: dict[str, str], maps_dir: Path) -> None:
    loader = Loader(["one", "two"], maps_dir)
    loader.open_maps()
    with pytest.raises(NotFound, match="constant c of one, two"):
        loader.load({"c": bytes(4)})
    loader.close()

# SPDX-License-Identifier: Apache-2.0
"""An object is compiled once for a source and compiler; a prebuilt one needs no compiler."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import compile as bpf_compile
from bpf.errors import CompileError, RequirementMissing

SOURCE = """
#include "lib/number.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("socket") int answer(struct __sk_buff *ctx) { return NUMBER; }
char _license[] SEC("license") = "GPL";
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "src" / "lib").mkdir(parents=True)
    (tmp_path / "src" / "lib" / "number.h").write_text("#define NUMBER 1\n")
    (tmp_path / "src" / "tiny.bpf.c").write_text(SOURCE)
    return tmp_path / "src"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records each run of the compiler."""
    real = bpf_compile.compile_source
    runs: list[str] = []

    def recording(source: Path, clang: str, defines: tuple[str, ...] = ()) -> bytes:
        runs.append(source.name)
        return real(source, clang, defines)

    monkeypatch.setattr(bpf_compile, "compile_source", recording)
    return runs


@pytest.fixture
def no_clang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    bpf_compile.find_clang.cache_clear()
    yield
    bpf_compile.find_clang.cache_clear()


def test_second_load_comes_from_the_cache(
    sources: Path, tmp_path: Path, compilations: list[str]
) -> None:
    cache = tmp_path / "cache"
    first = bpf_compile.load_object("tiny", cache_dir=cache, source_dir=sources)
    second = bpf_compile.load_object("tiny", cache_dir=cache, source_dir=sources)
    assert first == second
    assert first.startswith(b"\x7fELF")
    assert compilations == ["tiny.bpf.c"]


@pytest.mark.parametrize("changed", ["lib/number.h", "tiny.bpf.c"])
def test_changed_source_or_header_is_compiled_again(
    sources: Path, tmp_path: Path, compilations: list[str], changed: str
) -> None:
    cache = tmp_path / "cache"
    bpf_compile.load_object("tiny", cache_dir=cache, source_dir=sources)
    path = sources / changed
    path.write_text(path.read_text() + "\n/* changed */\n")
    bpf_compile.load_object("tiny", cache_dir=cache, source_dir=sources)
    assert len(compilations) == 2


def test_defines_make_another_object(sources: Path, tmp_path: Path) -> None:
    (sources / "lib" / "number.h").write_text("#ifndef NUMBER\n#define NUMBER 1\n#endif\n")
    cache = tmp_path / "cache"
    one = bpf_compile.load_object("tiny", cache_dir=cache, source_dir=sources)
    two = bpf_compile.load_object(
        "tiny", cache_dir=cache, source_dir=sources, defines=("NUMBER=2",)
    )
    assert one != two


def test_compiler_error_is_shown(sources: Path, tmp_path: Path) -> None:
    (sources / "tiny.bpf.c").write_text("int broken(void) { return missing_name; }\n")
    with pytest.raises(CompileError, match="missing_name"):
        bpf_compile.load_object("tiny", cache_dir=tmp_path / "cache", source_dir=sources)
    assert not (tmp_path / "cache").exists()


def test_unwritable_cache_costs_only_the_cache(
    sources: Path, tmp_path: Path, compilations: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        elf = bpf_compile.load_object(
            "tiny", cache_dir=tmp_path / "file" / "cache", source_dir=sources
        )
        assert elf.startswith(b"\x7fELF")
    assert len(compilations) == 2


@pytest.mark.usefixtures("no_clang")
def test_one_sentence_says_what_to_do_without_clang(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(RequirementMissing, match=r"no clang was found.*install clang"):
        bpf_compile.load_object("tiny", cache_dir=tmp_path / "cache", source_dir=sources)


def test_prebuilt_object_needs_no_clang_while_the_sources_are_the_same(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prebuilt = tmp_path / "objects"
    monkeypatch.setattr(bpf_compile, "SOURCE_DIR", sources)
    monkeypatch.setattr(bpf_compile, "PREBUILT_DIR", prebuilt)
    assert bpf_compile.build_prebuilt() == ["tiny"]
    monkeypatch.setattr(bpf_compile, "find_clang", lambda: pytest.fail("looked for a compiler"))
    elf = bpf_compile.load_object("tiny", cache_dir=tmp_path / "cache")
    assert elf == (prebuilt / "tiny.o").read_bytes()


def test_prebuilt_object_of_other_sources_is_not_used(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[str]
) -> None:
    prebuilt = tmp_path / "objects"
    monkeypatch.setattr(bpf_compile, "SOURCE_DIR", sources)
    monkeypatch.setattr(bpf_compile, "PREBUILT_DIR", prebuilt)
    bpf_compile.build_prebuilt()
    (sources / "lib" / "number.h").write_text("#define NUMBER 5\n")
    elf = bpf_compile.load_object("tiny", cache_dir=tmp_path / "cache")
    assert elf != (prebuilt / "tiny.o").read_bytes()
    assert len(compilations) == 2


def test_changed_header_rebuilds_only_the_objects_that_include_it(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_compile, "SOURCE_DIR", sources)
    monkeypatch.setattr(bpf_compile, "PREBUILT_DIR", tmp_path / "objects")
    (sources / "other.bpf.c").write_text(SOURCE.replace("lib/number.h", "lib/other.h"))
    (sources / "lib" / "other.h").write_text("#define NUMBER 1\n")
    assert bpf_compile.build_prebuilt() == ["other", "tiny"]
    (sources / "lib" / "number.h").write_text("#define NUMBER 5\n")
    assert bpf_compile.build_prebuilt() == ["tiny"]
    assert bpf_compile.build_prebuilt() == []


def test_interrupted_build_leaves_no_hash_beside_another_object(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_compile, "SOURCE_DIR", sources)
    monkeypatch.setattr(bpf_compile, "PREBUILT_DIR", tmp_path / "objects")
    (sources / "later.bpf.c").write_text(SOURCE)
    bpf_compile.build_prebuilt()
    first = bpf_compile.load_object("later")
    number = sources / "lib" / "number.h"
    number.write_text("#define NUMBER 5\n")
    (sources / "tiny.bpf.c").write_text("#error the second of two\n")
    with pytest.raises(CompileError):
        bpf_compile.build_prebuilt()
    number.write_text("#define NUMBER 1\n")
    (sources / "tiny.bpf.c").write_text(SOURCE)
    bpf_compile.build_prebuilt()
    assert bpf_compile.load_object("later") == first


def test_full_disk_leaves_no_part_of_an_object(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    elf = bpf_compile.load_object("tiny", cache_dir=tmp_path / "cache", source_dir=sources)
    assert elf.startswith(b"\x7fELF")
    assert list((tmp_path / "cache").iterdir()) == []

# SPDX-License-Identifier: Apache-2.0
"""Errors are told apart by kind and say what failed."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from bpf import errors


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, errors.NotFound),
        (errno.EEXIST, errors.Exists),
        (errno.E2BIG, errors.MapFull),
        (errno.ENOSPC, errors.MapFull),
        (errno.EPERM, errors.NoPrivilege),
        (errno.EACCES, errors.NoPrivilege),
        (errno.ENOMEM, errors.NoMemory),
        (errno.ENODEV, errors.DeviceGone),
        (errno.ENOLINK, errors.Detached),
        (errors.ENOTSUPP, errors.Unsupported),
        (errno.EBUSY, errors.Busy),
        (errno.ESTALE, errors.StaleRevision),
        (errno.EINVAL, errors.Invalid),
        (errno.EIO, errors.KernelError),
    ],
)
def test_errno_becomes_an_exception_of_its_kind(
    number: int, kind: type[errors.KernelError]
) -> None:
    error = errors.kernel_error("update cilia_lb4_svc", number)
    assert type(error) is kind
    assert error.errno == number
    assert str(error).startswith("update cilia_lb4_svc: ")


def test_log_keeps_the_last_useful_lines_and_counts_the_rest() -> None:
    log = "\n".join([*(f"{n}: (b7) r0 = {n}" for n in range(100)), "R1 invalid mem access"])
    log += "\nverification time 12 usec\nprocessed 101 insns\n-- END PROG LOAD LOG --\n"
    shown = errors.trim_log(log, shown=3).splitlines()
    assert shown == [
        "101 lines omitted",
        "98: (b7) r0 = 98",
        "99: (b7) r0 = 99",
        "R1 invalid mem access",
    ]


def test_short_log_is_shown_whole() -> None:
    assert errors.trim_log("one\ntwo\n") == "one\ntwo"


def test_package_and_codecs_need_no_compiled_binding() -> None:
    program = (
        "import sys, bpf, bpf.errors, bpf.compile, bpf.maps, bpf.maps.fake, bpf.maps.lb\n"
        "bpf.maps.lb.LBMaps.fake()\n"
        "assert not [m for m in sys.modules if m in ('bpf._libbpf', 'bpf.libbpf')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_missing_binding_is_one_sentence() -> None:
    program = (
        "import sys\n"
        "sys.modules['bpf._libbpf'] = None\n"
        "from bpf.errors import RequirementMissing\n"
        "try:\n"
        "    import bpf.sock\n"
        "except RequirementMissing as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert said.startswith("the binding of libbpf does not load")
    assert "install libbpf 1.x" in said

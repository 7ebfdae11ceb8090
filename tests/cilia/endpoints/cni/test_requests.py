# SPDX-License-Identifier: Apache-2.0
"""Requests are parsed whole; what is wrong has the code of the specification and is named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.endpoints.cni.errors import CNIError
from cilia.endpoints.cni.requests import Attachment, Request, parse
from cilia.endpoints.cni.results import VERSIONS
from tests.cilia.endpoints.cni.runtime import CONFIG, NETNS

VARIABLES: dict[str, str | None] = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "0f3c",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": NETNS,
    "CNI_PATH": "/opt/cni/bin",
}
PREVIOUS = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "sandbox": NETNS}],
    "ips": [{"address": "10.0.0.5/32", "interface": 0}],
}


@pytest.fixture
def netns() -> Iterator[int]:
    descriptor = os.open(NETNS, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def block(variables: dict[str, str | None]) -> bytes:
    """Return variables as the program sends them, without those that are None."""
    return b"".join(f"{k}={v}\0".encode() for k, v in variables.items() if v is not None)


def request(netns: int | None, config: Any = None, **variables: str | None) -> Request:
    text = config if isinstance(config, bytes) else json.dumps({**CONFIG, **(config or {})})
    text = text if isinstance(text, bytes) else text.encode()
    return parse(block({**VARIABLES, **variables}), text, netns)


def test_a_request_is_what_came(netns: int) -> None:
    added = request(
        netns,
        {"mtu": 1400, "ipam": {"type": "host-local", "subnet": "x"}, "prevResult": PREVIOUS},
        CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=web;;K8S_POD_UID=a=b",
    )
    assert added.attachment == Attachment("cilia", "0f3c", "eth0")
    assert added.args == {"IgnoreUnknown": "1", "K8S_POD_NAME": "web", "K8S_POD_UID": "a=b"}
    assert (added.netns, added.netns_fd) == (NETNS, netns)
    assert added.config.mtu == 1400
    assert added.config.ipam and added.config.ipam.type == "host-local"
    assert json.loads(added.raw_config)["ipam"]["subnet"] == "x"
    assert added.environment["CNI_PATH"] == "/opt/cni/bin"
    assert added.prev_result and added.prev_result.ips[0].address == "10.0.0.5/32"


def test_delete_needs_no_namespace_and_no_result_that_can_be_read() -> None:
    with open(os.devnull) as other:
        for netns in (None, other.fileno()):
            deleted = request(netns, {"prevResult": {"ips": 5}}, CNI_COMMAND="DEL", CNI_NETNS=None)
            assert (deleted.netns_fd, deleted.prev_result) == (None, None)


def test_gc_has_the_valid_attachments() -> None:
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]
    for name in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        collected = request(None, {name: valid}, CNI_COMMAND="GC", CNI_CONTAINERID=None)
        assert collected.valid_attachments == {("cilia", "a", "eth0"), ("cilia", "b", "net1")}
    none = request(None, {"cni.dev/valid-attachments": []}, CNI_COMMAND="GC")
    assert none.valid_attachments == frozenset()


Change = dict[str, Any]
ABSENT: Any = ...

#: Code, a part of the sentence, fields of the configuration, variables.
WRONG: list[tuple[int, str, Change, Change]] = [
    (1, "cniVersion of the network configuration is missing", {"cniVersion": ABSENT}, {}),
    (1, "is '0.2.0': it must be one of 0.3.1, 0.4.0", {"cniVersion": "0.2.0"}, {}),
    (1, "is '1.2.0'", {"cniVersion": "1.2.0"}, {}),
    (1, "CHECK is no command of cniVersion 0.3.1", {"cniVersion": "0.3.1"}, {"COMMAND": "CHECK"}),
    (1, "STATUS is no command of cniVersion 1.0.0", {"cniVersion": "1.0.0"}, {"COMMAND": "STATUS"}),
    (1, "GC is no command of cniVersion 1.0.0", {"cniVersion": "1.0.0"}, {"COMMAND": "GC"}),
    (4, "CNI_COMMAND is ''", {}, {"COMMAND": None}),
    (4, "CNI_COMMAND is 'VERSION'", {}, {"COMMAND": "VERSION"}),
    (4, "CNI_COMMAND is 'add\\\\n", {}, {"COMMAND": "add\n"}),
    (
        4,
        "ADD needs CNI_CONTAINERID and CNI_NETNS and CNI_IFNAME",
        {},
        {"CONTAINERID": None, "NETNS": "", "IFNAME": None},
    ),
    (
        4,
        "DEL needs CNI_CONTAINERID and CNI_IFNAME",
        {},
        {"COMMAND": "DEL", "CONTAINERID": "", "IFNAME": ""},
    ),
    (4, "CHECK needs CNI_NETNS", {}, {"COMMAND": "CHECK", "NETNS": None}),
    (4, "GC needs CNI_PATH", {}, {"COMMAND": "GC", "PATH": None}),
    (4, "CNI_CONTAINERID is '../x'", {}, {"CONTAINERID": "../x"}),
    (4, "CNI_CONTAINERID is 'a\\\\n'", {}, {"CONTAINERID": "a\n"}),
    (4, "CNI_CONTAINERID is 'a:b'", {}, {"CONTAINERID": "a:b"}),
    (4, "CNI_CONTAINERID is 'xx", {}, {"CONTAINERID": "x" * 129}),
    (4, "CNI_IFNAME is '..'", {}, {"IFNAME": ".."}),
    (4, "CNI_IFNAME is 'a/b'", {}, {"IFNAME": "a/b"}),
    (4, "CNI_IFNAME is 'xxxx", {}, {"IFNAME": "x" * 16}),
    (4, "CNI_ARGS: 'novalue' is no KEY=VALUE", {}, {"ARGS": "a=b;novalue"}),
    (4, "CNI_ARGS: '=b' is no KEY=VALUE", {}, {"ARGS": "=b"}),
    (4, "CNI_ARGS: 'a=c' is a key that is there twice", {}, {"ARGS": "a=b;a=c"}),
    (6, "cniVersion is no text but 1", {"cniVersion": 1}, {}),
    (7, "name: is missing", {"name": ABSENT}, {}),
    (7, "name: String should match", {"name": "a/b"}, {}),
    (7, "name: String should have at most 100", {"name": "x" * 101}, {}),
    (7, "name: should be a valid string, not 5", {"name": 5}, {}),
    (7, "type: is missing", {"type": ABSENT}, {}),
    (7, "mtu: should be a valid integer, not '1400'", {"mtu": "1400"}, {}),
    (7, "mtu: should be less than or equal to 65535, not 70000", {"mtu": 70000}, {}),
    (7, "ipam.type: String should match", {"ipam": {"type": "../../bin/sh"}}, {}),
    (7, "ipam: ", {"ipam": []}, {}),
    (7, "socket-path: should be a valid string", {"socket-path": 1}, {}),
    (
        7,
        "mtu: should be a valid integer, not 'x', socket-path: ",
        {"mtu": "x", "socket-path": 1},
        {},
    ),
    (
        7,
        "prevResult: ips[0].address: '10.0.0.5' has no",
        {"prevResult": {"ips": [{"address": "10.0.0.5"}]}},
        {},
    ),
    (7, "prevResult: ", {"prevResult": []}, {}),
    (7, "CHECK needs prevResult", {}, {"COMMAND": "CHECK"}),
    (7, "GC needs cni.dev/valid-attachments", {}, {"COMMAND": "GC"}),
    (
        7,
        "GC needs cni.dev/valid-attachments",
        {"cni.dev/valid-attachments": None},
        {"COMMAND": "GC"},
    ),
    (
        7,
        "cni.dev/valid-attachments.0.ifname: is missing",
        {"cni.dev/valid-attachments": [{"containerID": "a"}]},
        {"COMMAND": "GC"},
    ),
]


@pytest.mark.parametrize(("code", "sentence", "fields", "changes"), WRONG)
def test_what_is_wrong_is_named(
    netns: int, code: int, sentence: str, fields: Change, changes: Change
) -> None:
    config = {key: value for key, value in {**CONFIG, **fields}.items() if value is not ABSENT}
    variables = {f"CNI_{name}": value for name, value in changes.items()}
    with pytest.raises(CNIError) as refused:
        parse(block({**VARIABLES, **variables}), json.dumps(config).encode(), netns)
    assert refused.value.code == code, refused.value
    assert sentence.replace("\\\\", "\\") in refused.value.msg
    assert refused.value.msg.isprintable() and len(refused.value.msg) < 500


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b'{"a":"\xff"}',
        b"[" * 200_000,
        b'{"cniVersion":' * 100_000,
        b'{"mtu":' + b"9" * 5000 + b"}",
        b"{} {}",
    ],
)
def test_what_is_no_json_object_cannot_be_decoded(netns: int, text: bytes) -> None:
    with pytest.raises(CNIError) as refused:
        request(netns, text)
    assert refused.value.code == 6


def test_only_a_network_namespace_is_one(netns: int) -> None:
    other = os.open("/proc/self/ns/uts", os.O_RDONLY)
    plain = os.open(os.devnull, os.O_RDONLY)
    try:
        for descriptor in (None, other, plain):
            with pytest.raises(CNIError, match="CNI_NETNS") as refused:
                request(descriptor)
            assert refused.value.code == 4
    finally:
        os.close(other)
        os.close(plain)
    assert request(netns).netns_fd == netns


def test_variables_that_are_no_text_are_named() -> None:
    for bad, name in ((b"CNI_X=\xff\0", "CNI_X"), (b"CNI_PATH=/a\0", "CNI_PATH is there twice")):
        with pytest.raises(CNIError, match=name) as refused:
            parse(block(VARIABLES) + bad, json.dumps(CONFIG).encode())
        assert refused.value.code == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *("cniVersion", "name", "type", "mtu", "ipam", "args", "runtimeConfig", "prevResult"),
        *("cni.dev/valid-attachments", "chaining-mode", "enable-debug", "socket-path", "other"),
    ]
)
RESULTS = st.fixed_dictionaries(
    {},
    optional={
        "interfaces": JSON,
        "ips": st.lists(st.fixed_dictionaries({"address": JSON})),
        "routes": JSON,
        "dns": JSON,
    },
)


@settings(max_examples=30)
@given(
    st.dictionaries(FIELDS, JSON | RESULTS),
    st.sampled_from(VERSIONS),
    st.sampled_from(["ADD", "DEL", "CHECK", "STATUS", "GC"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_any_json_is_a_request_or_is_refused(
    fields: dict[str, Any], version: str, command: str, text: str
) -> None:
    config = json.dumps({**CONFIG, "cniVersion": version, **fields}).encode()
    variables = {**VARIABLES, "CNI_COMMAND": command, "CNI_ARGS": text}
    error: CNIError | None = None
    try:
        parsed = parse(block(variables), config)
    except CNIError as refused:
        error = refused
    if error is None:
        assert parsed.config.cni_version == json.loads(config)["cniVersion"]
    else:
        assert error.code in (1, 4, 6, 7)
        assert error.msg.isprintable() and len(error.msg) < 500


@given(st.binary(), st.binary())
def test_any_bytes_are_a_request_or_are_refused(environment: bytes, config: bytes) -> None:
    with pytest.raises(CNIError):
        parse(environment, config)

# SPDX-License-Identifier: Apache-2.0
"""Some hundreds of hostile requests to an agent in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from cilia.program import serving
from tests.cilia.fuzz.requests import Answer, Request, application, run_requests

REQUESTS = 400
HOSTILE = (
    Request("PUT", b"/replacement", b"", b'{"on": '),
    Request("PUT", b"/replacement", b"", b"[]"),
    Request("PUT", b"/replacement", b"", b"[" * 5000),
    Request("PUT", b"/replacement", b"", b'{"on": "\xff"}'),
    Request("POST", b"/script/run", b"", b"[]"),
    Request("POST", b"/script/run", b"", b'{"line": 5}'),
    Request("GET", b"/statedb/query", b"table=problems&revision=" + b"9" * 5000, b""),
    Request("GET", b"/statedb/dump/problems", b"revision=" + b"9" * 5000, b""),
    Request("GET", b"/statedb/query", b"table=frontends&kind=get&key=x:" + b"9" * 5000, b""),
)


async def answer_to(directory: Path, request: Request) -> Answer:
    answer = Answer(request)
    with application(directory) as app:
        await app(request.scope(), answer.receive, answer.send)
    return answer


async def test_every_request_is_answered(tmp_path: Path) -> None:
    assert await run_requests(tmp_path, range(REQUESTS)) == []


@pytest.mark.parametrize("request_", HOSTILE)
async def test_a_request_that_means_nothing_is_refused(tmp_path: Path, request_: Request) -> None:
    answer = await answer_to(tmp_path, request_)
    assert answer.status == 400


async def test_a_path_with_a_slash_at_its_end_is_not_there(tmp_path: Path) -> None:
    """No query is decoded for it."""
    answer = await answer_to(tmp_path, Request("GET", b"/statedb/", b"\xf4", b""))
    assert answer.status == 404


async def test_a_body_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_BYTES", 10)
    request = Request("PUT", b"/replacement", b"", b'{"on": true, "x": 1}')
    answer = await answer_to(tmp_path, request)
    assert answer.status == 400
    assert b"longer than 10 bytes" in answer.body

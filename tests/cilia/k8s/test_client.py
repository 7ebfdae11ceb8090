# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from cilia.k8s.client import retry_after_s


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("3", 3.0),
        ("86400", 10.0),
        ("9" * 400, 10.0),
        ("9" * 5000, 10.0),
        ("²", 0.0),
        ("-1", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("soon", 0.0),
    ],
)
def test_a_wait_that_a_server_asks_for_is_bounded(text: str, wait_s: float) -> None:
    assert retry_after_s(text, 5.0) == wait_s

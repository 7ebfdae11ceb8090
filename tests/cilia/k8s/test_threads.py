# SPDX-License-Identifier: Apache-2.0
"""Blocking calls: few at once, also where nobody waits for them any more."""

from __future__ import annotations

import contextlib
import socket
import threading

import anyio
import anyio.to_thread
import pytest

from cilia.k8s.access import Access
from cilia.k8s.api_servers import Servers, parse_server
from cilia.k8s.client import Limits
from cilia.k8s.threads import Threads
from cilia.k8s.writing import WritingClient


async def test_a_silent_server_has_few_writes_and_no_more_after_their_callers_have_gone() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        silent.settimeout(0.1)
        servers = Servers([parse_server(f"http://127.0.0.1:{silent.getsockname()[1]}")])
        limits = Limits(request_timeout_s=0.8, heartbeat_timeout_s=0.3, qps=1e6, burst=1000)
        async with (
            WritingClient(Access(anonymous=True), servers, limits) as client,
            anyio.create_task_group() as group,
        ):
            for number in range(12):
                group.start_soon(client.create, f"/things/{number}", {"metadata": {}})
            accepted = [(await anyio.to_thread.run_sync(silent.accept))[0]]
            group.cancel_scope.cancel()
        with contextlib.suppress(TimeoutError):
            while True:
                accepted.append(silent.accept()[0])
        for connection in accepted:
            connection.close()
        assert len(accepted) <= 4


async def test_a_shielded_call_is_made_while_the_program_ends() -> None:
    """As the release of a Lease."""
    done = []
    with anyio.CancelScope() as program:
        async with Threads(1) as threads:
            try:
                program.cancel()
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    done.append(await threads.run(lambda: "released"))
    assert done == ["released"]


async def test_a_call_that_was_given_up_counts_until_it_ends() -> None:
    end, begun = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        end.wait(5)

    async with Threads(1) as threads:
        async with anyio.create_task_group() as group:
            group.start_soon(threads.run, block)
            await anyio.to_thread.run_sync(begun.wait, 5)
            group.cancel_scope.cancel()
        with anyio.move_on_after(0.1) as waited:
            await threads.run(lambda: None)
        assert waited.cancelled_caught
        end.set()
        with anyio.fail_after(5):
            assert await threads.run(lambda: "next") == "next"


async def test_what_a_call_raises_is_its_caller_s() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Threads(1) as threads:
            await threads.run(lambda: 1 // 0)

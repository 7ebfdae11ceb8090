# SPDX-License-Identifier: Apache-2.0
"""Coalescing: what comes while a reflector is busy becomes one batch, and one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import anyio

from cilia.k8s.watch import Event

# How long a reflector leaves its source alone after a batch, so that a burst is a few transactions.
WAIT_S: Final = 0.01


async def batches(
    stream: AsyncIterator[list[Event]], wait_s: float = WAIT_S
) -> AsyncIterator[list[Event]]:
    """The batches of a source, at most one in ``wait_s``; after a quiet time the first comes at
    once.

    Relies on the source to gather what comes in between.
    """
    async for batch in stream:
        yield batch
        await anyio.sleep(wait_s)

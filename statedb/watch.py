# SPDX-License-Identifier: Apache-2.0
"""Watch channels: a channel closes once, carries nothing, and says «take a new snapshot and look
again».

A channel can be awaited in any event loop of anyio and waited for from a thread. It is a flag and a
list of wakers: an event object would cost 2 us, and most channels close without anyone waiting on
them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import anyio.lowlevel

_lock = threading.Lock()


class Channel:
    """Closes exactly once; `closed` says whether it has."""

    __slots__ = ("__weakref__", "_wakers", "closed")

    def __init__(self) -> None:
        self.closed = False
        self._wakers: list[Callable[[], object]] | None = None

    def close(self) -> None:
        """Close the channel and wake all who wait; closing twice does nothing.

        The flag is set before the wakers are read, and `_add` looks at the flag after it has added:
        one of the two sees the other.
        """
        self.closed = True
        if self._wakers is not None:
            with _lock:
                wakers = self._wakers
                self._wakers = None
            for wake in wakers or ():
                wake()

    def _add(self, wake: Callable[[], object]) -> None:
        with _lock:
            if self._wakers is None:
                self._wakers = []
            self._wakers.append(wake)
        if self.closed:
            wake()

    def _discard(self, wake: Callable[[], object]) -> None:
        with _lock:
            if self._wakers is not None and wake in self._wakers:
                self._wakers.remove(wake)

    async def wait(self) -> None:
        """Wait until the channel is closed."""
        await wait_any((self,))

    def wait_sync(self, timeout_s: float | None = None) -> bool:
        """Block this thread until the channel is closed; False when `timeout_s` passed before."""
        if self.closed:
            return True
        event = threading.Event()
        self._add(event.set)
        try:
            return event.wait(timeout_s)
        finally:
            self._discard(event.set)

    def __repr__(self) -> str:
        return f"<Channel {'closed' if self.closed else 'open'}>"


def closed_channel() -> Channel:
    """Return a channel that is closed already."""
    channel = Channel()
    channel.closed = True
    return channel


async def wait_any(channels: Iterable[Channel]) -> None:
    """Wait until at least one of the channels is closed; cancelling leaves nothing behind."""
    channels = tuple(channels)
    if any(channel.closed for channel in channels):
        await anyio.lowlevel.checkpoint()
        return
    event = anyio.Event()
    wake = _waker(event)
    for channel in channels:
        channel._add(wake)
    try:
        await event.wait()
    finally:
        for channel in channels:
            channel._discard(wake)


def _waker(event: anyio.Event) -> Callable[[], object]:
    """Return a function that sets the event from any thread."""
    loop: Any = anyio.lowlevel.current_token().native_token
    post = (
        loop.call_soon_threadsafe if hasattr(loop, "call_soon_threadsafe") else loop.run_sync_soon
    )

    def wake() -> None:
        try:
            post(event.set)
        except RuntimeError:
            if not _is_closed(loop):
                raise

    return wake


def _is_closed(loop: Any) -> bool:
    """Whether the event loop is gone, and the waiter with it."""
    return not hasattr(loop, "is_closed") or bool(loop.is_closed())


class WatchSet:
    """Waits for any of many channels."""

    def __init__(self, *channels: Channel) -> None:
        self._channels: set[Channel] = set(channels)

    def add(self, *channels: Channel) -> None:
        """Add channels; one that is in already is kept once."""
        self._channels.update(channels)

    def discard(self, *channels: Channel) -> None:
        """Remove channels, those that are not in included."""
        self._channels.difference_update(channels)

    def clear(self) -> None:
        """Remove all channels."""
        self._channels.clear()

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._channels

    def __len__(self) -> int:
        return len(self._channels)

    async def wait(self, settle_s: float = 0.0) -> set[Channel]:
        """Wait until one is closed, then `settle_s` seconds for more; remove and return the closed
        ones.

        With no channel in the set it returns an empty set at once.
        """
        if not self._channels:
            await anyio.lowlevel.checkpoint()
            return set()
        await wait_any(self._channels)
        if settle_s > 0:
            with anyio.move_on_after(settle_s):
                while pending := [channel for channel in self._channels if not channel.closed]:
                    await wait_any(pending)
        return self._take_closed()

    def _take_closed(self) -> set[Channel]:
        closed = {channel for channel in self._channels if channel.closed}
        self._channels -= closed
        return closed

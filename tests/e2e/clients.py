# SPDX-License-Identifier: Apache-2.0
"""Clients that notice whatever goes wrong while something is exchanged below them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.e2e.world import World

STREAMS = 5


class Clients:
    """Streams, new connections and numbered datagrams through Services at port 80.

    The streams are to the first address.
    """

    def __init__(self, w: World, addresses: Sequence[str]) -> None:
        self._world, self._inside = w, w.inside
        self._streams = w.inside.streams_open(addresses[0], 80, STREAMS)
        self._loops = [w.inside.loop_start(address, 80, 50.0) for address in addresses]
        self._datagrams = [w.inside.datagrams_start(address, 80, 100.0) for address in addresses]

    def heard(self) -> None:
        """Wait for some more answers of each."""
        counts = [(loop, self._inside.loop_count(loop) + 10) for loop in self._loops]
        self._world.eventually(
            lambda: all(self._inside.loop_count(loop) >= wanted for loop, wanted in counts)
        )

    def noticed_nothing(self) -> None:
        """End them; fails with what they noticed."""
        told = self._inside.streams_stop(self._streams)
        assert told["answered"] > STREAMS and told["failures"] == []
        for found in map(self._inside.loop_stop, self._loops):
            assert found["failures"] == []
        for found in map(self._inside.datagrams_stop, self._datagrams):
            assert (found["lost"], found["failures"]) == ([], [])
            assert found["sent"] > 10

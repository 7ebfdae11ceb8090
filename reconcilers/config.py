# SPDX-License-Identifier: Apache-2.0
"""All settings of a reconciler with their defaults, units and reasons, in one block."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    # Objects handled in one round. A round is one snapshot, one batch to the target and one write
    # transaction for the statuses: large enough to spread their fixed cost, small enough that
    # statuses show up soon and the event loop is not held for more than some milliseconds.
    round_size: int = 1000

    # Retries that are added to a round which new changes have filled, as a part of its size and
    # at least one; without them a busy table would never get to its failed objects.
    retry_share: float = 0.1

    # Pause between two rounds that were woken by changes, in seconds, so that a burst of commits
    # becomes one batch. A backlog is worked off without pauses.
    round_interval_s: float = 0.005

    # First and largest wait before a failed object is tried again, in seconds; it doubles with
    # each failure of that object. Jitter is the part of it by which it is shortened at random,
    # so that objects that failed together do not return together.
    retry_backoff_min_s: float = 0.1
    retry_backoff_max_s: float = 60.0
    retry_jitter: float = 0.1

    # Age at which a reconciled object is applied again, in seconds, against silent changes of the
    # target; 0 turns it off. At most `refresh_rate` objects a second, so that a large table is
    # not rewritten in one burst.
    refresh_interval_s: float = 1800.0
    refresh_rate: float = 1000.0

    # Time between full comparisons that remove foreign entries from the target, in seconds;
    # 0 leaves only the one after initialisation and those on request.
    prune_interval_s: float = 3600.0

    # Time between read-backs of the target that report and repair drift, in seconds; 0 leaves
    # only those on request. Needs operations that can verify.
    verify_interval_s: float = 0.0

    # Read the target back in a worker thread, for targets of many entries: comparing 20,000
    # frontends with their maps takes 0.35 s, which others of the event loop would feel.
    verify_in_thread: bool = False

    # Run rounds in a worker thread: for targets that block (netlink dumps, the API server).
    in_thread: bool = False

    def __post_init__(self) -> None:
        """Raises: ValueError naming the setting, for sizes and times that cannot work."""
        if self.round_size < 1:
            raise ValueError(f"round_size must be at least 1, not {self.round_size}")
        if not 0 < self.retry_backoff_min_s <= self.retry_backoff_max_s:
            raise ValueError(
                "retry_backoff_min_s must be positive and at most retry_backoff_max_s, not "
                f"{self.retry_backoff_min_s} and {self.retry_backoff_max_s}"
            )
        if not 0 <= self.retry_jitter < 1:
            raise ValueError(f"retry_jitter must be in [0, 1), not {self.retry_jitter}")
        if self.refresh_rate <= 0:
            raise ValueError(f"refresh_rate must be positive, not {self.refresh_rate}")

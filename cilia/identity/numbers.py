# SPDX-License-Identifier: Apache-2.0
"""The numbers of a cluster's identities, and why one cannot be had."""

from __future__ import annotations

from typing import Final

from reconcilers.operations import Refusal
from tables.identity.identities import CLUSTER_MAX, CLUSTER_MIN, labels_text

__all__ = ["NUMBERS", "IdentitiesExhausted", "TakenNumber"]

#: How many there are.
NUMBERS: Final = CLUSTER_MAX - CLUSTER_MIN + 1


class IdentitiesExhausted(Exception):
    """Every number is taken."""

    def __init__(self) -> None:
        super().__init__(
            f"all {NUMBERS} identities of the cluster are in use: leave labels out of them that"
            " differ from workload to workload"
        )


class TakenNumber(Refusal):
    """A number that is in force has become that of other labels."""

    def __init__(self, number: int, labels: tuple[str, ...]) -> None:
        super().__init__(f"identity {number} is that of {labels_text(labels)} by now")

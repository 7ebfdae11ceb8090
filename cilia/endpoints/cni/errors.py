# SPDX-License-Identifier: Apache-2.0
"""Errors of the Container Network Interface.

CNIError        an answer to the runtime: a code of the specification and a sentence
WireError       a peer of the socket does not speak as `cilia-cni` does
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

__all__ = ["CNIError", "Code", "WireError"]


class Code(IntEnum):
    """Codes of the specification; below 100 they are the same for all plugins."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3  # nothing is to be cleaned up
    INVALID_ENVIRONMENT = 4  # the message names the variables
    IO_FAILURE = 5
    UNDECODABLE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50  # of STATUS: an ADD would fail
    LIMITED = 51  # of STATUS: an ADD would fail, and existing containers may be cut off
    INTERNAL = 999


class CNIError(Exception):
    """A request fails; the runtime shows the message to people, so it says what to do."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{msg} (code {int(code)})")
        self.code, self.msg, self.details = code, msg, details

    def encoded(self, version: str) -> bytes:
        """Return the error as JSON; `version` is the configuration's, or one that we support."""
        form = {"cniVersion": version, "code": int(self.code), "msg": self.msg}
        return msgspec.json.encode(form | ({"details": self.details} if self.details else {}))


class WireError(Exception):
    """What came from the socket, or from a file of the queue, is no request; says why."""

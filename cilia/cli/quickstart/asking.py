# SPDX-License-Identifier: Apache-2.0
"""The quickstart's client: one HTTP request, a new connection each time, and a count of answers."""

from __future__ import annotations

import http.client
from collections import Counter


class Asking:
    """Asks one URL again and again, and counts answers by name, failures by reason."""

    def __init__(self, address: str, port: int = 80) -> None:
        self.address, self.port = address, port
        self.answers: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def ask(self) -> str | None:
        """The name of the backend that answered, or None."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=2)
        try:
            connection.request("GET", "/")
            name = connection.getresponse().read().decode().strip()
        except (OSError, http.client.HTTPException) as error:
            self.failures[getattr(error, "strerror", None) or type(error).__name__] += 1
            return None
        finally:
            connection.close()
        self.answers[name] += 1
        return name

    def line(self) -> str:
        """`backend-1 12, backend-2 9, 0 failed`."""
        names = ", ".join(f"{name} {count}" for name, count in sorted(self.answers.items()))
        return f"{names or 'no answer yet'}, {self.failures.total()} failed"

# SPDX-License-Identifier: Apache-2.0
"""kube-proxy's `/healthz`, for what asked kube-proxy before: cloud load balancers, probes.

200 while no part of the agent is degraded, else 503; the body says since when.
"""

from __future__ import annotations

import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cilia.program.serving import application
from statedb import DB, Table
from tables.health import Health, Level
from tables.times import rfc3339

__all__ = ["proxy_healthz_app"]


def proxy_healthz_app(db: DB, health: Table[Health]) -> Starlette:
    def healthz(_: Request) -> Response:
        now = time.time()
        degraded = [row for row in health.all(db.read_txn()) if row.level is Level.DEGRADED]
        well = min((row.last_ok or row.updated_at for row in degraded), default=now)
        return JSONResponse(
            {"lastUpdated": rfc3339(well), "currentTime": rfc3339(now)},
            status_code=503 if degraded else 200,
            headers={"X-Content-Type-Options": "nosniff"},
        )

    return application([Route("/healthz", healthz)])

# SPDX-License-Identifier: Apache-2.0
"""What services are made of beside the objects of the one source: built here, run by the wiring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cilia.agent.service_options import ServiceOptions
from cilia.controllers.loadbalancer.writer import Writer
from cilia.k8s.state_file import state_file_source
from cilia.reflectors.problems import ProblemReflector
from cilia.reflectors.services import ServiceReflector
from statedb import DB, RWTable
from tables.problems import Problem
from tables.sources import Source

__all__ = ["state_file_jobs"]

Jobs = dict[str, Callable[[], Awaitable[object]]]


def state_file_jobs(
    config: ServiceOptions,
    db: DB,
    problems: RWTable[Problem],
    writer: Writer,
    warn: Callable[[Problem], None],
) -> Jobs:
    """Services of `--lb-state-file`, less preferred than those of the API server; or nothing."""
    if config.lb_state_file is None:
        return {}
    source = state_file_source(config.lb_state_file, config.lb_state_file_interval_s)
    services = ServiceReflector(source, writer, origin=Source.API, warn=warn)
    refused = ProblemReflector(source, db, problems, name="lb-state-file", warn=warn)
    return {
        "watch-state-file": source.run,
        "reflect-state-file": services.run,
        "reflect-state-file-problems": refused.run,
    }

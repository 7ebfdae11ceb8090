# SPDX-License-Identifier: Apache-2.0
"""`make node-up` and `make node-down`: a cluster to try things on, and its end.

`up` refuses when one is running; `down` removes it, and what tests left that were killed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.kube.assets import asset

from . import leftovers
from .cluster import Cluster

NAME = "cilia-try"
DIRECTORY = Path("/var/tmp/cilia-try")

USAGE = """
A cluster of two nodes is running. From this machine:

    export KUBECONFIG={kubeconfig}
    export PATH={assets}:$PATH
    kubectl get pods -A -o wide

On a node, as one of its programs; its logs are in {directory}/n1:

    {enter} bash

On a machine outside the cluster:

    nsenter --net=/run/netns/{name}-client curl http://172.30.77.11:30080/

Images from no registry: cilia.invalid/workload:1 (`serve`, `ask`, `load`; /bin/sh is in it).
`make node-down` removes all of it.
"""


def up() -> None:
    if any(record.name == NAME for record in leftovers.records()):
        raise SystemExit("it is running, or was not taken down: `make node-down` first")
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(mode=0o700)
    cluster = Cluster(NAME, DIRECTORY, detached=True, say=lambda text: print(text, flush=True))
    try:
        cluster.start()
        cluster.start_agents()
        cluster.start_dns()
    except BaseException:
        kept = DIRECTORY.with_name(f"{DIRECTORY.name}-failed")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(DIRECTORY, kept)
        cluster.close()
        print(f"the logs are kept in {kept}", file=sys.stderr)
        raise
    node = cluster.nodes["n1"]
    print(
        USAGE.format(
            kubeconfig=cluster.api.kubeconfig,
            assets=asset("kubectl").parent,
            directory=DIRECTORY,
            enter=f"nsenter --target={node.pid} --mount --uts --net --pid",
            name=NAME,
        )
    )


def down() -> None:
    found = [record for record in leftovers.records() if record.maker == 0 or record.abandoned()]
    for record in found:
        print(f"removing {record.name}", flush=True)
        record.remove()
    if not found:
        print("no cluster is running")


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("a cluster needs root: namespaces, mounts and control groups")
    {"up": up, "down": down}[sys.argv[1]]()

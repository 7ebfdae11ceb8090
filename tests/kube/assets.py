# SPDX-License-Identifier: Apache-2.0
"""Where the programs of Kubernetes are: in KUBEBUILDER_ASSETS, else in the cache of kube-assets."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "install" / "kube-assets.sh"


@cache
def _directories() -> list[Path]:
    cached = subprocess.run([SCRIPT, "--path"], check=True, capture_output=True, text=True).stdout
    named = os.environ.get("KUBEBUILDER_ASSETS")
    return ([Path(named)] if named else []) + [Path(cached.strip())]


def asset(name: str) -> Path:
    """The path of a program (`kube-apiserver`, `etcd`, `helm`) or of the directory `cni`.

    Raises:
        FileNotFoundError: it was not built; says by which command it is.
    """
    for directory in _directories():
        if (directory / name).exists():
            return directory / name
    places = " and not in ".join(map(str, _directories()))
    raise FileNotFoundError(f"no {name} in {places}: run `make kube-assets` first")

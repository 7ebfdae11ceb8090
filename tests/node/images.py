# SPDX-License-Identifier: Apache-2.0
"""Container images from no registry: an archive of one layer, as `docker save` writes them.

Form: the image specification of Docker, version 1.2 (manifest.json, a configuration, layer.tar).
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

WORKLOAD = "cilia.invalid/workload:1"
COREDNS = "cilia.invalid/coredns:1"


def _libraries(program: Path) -> list[Path]:
    """The shared libraries and the loader of a program, as paths where it looks for them."""
    said = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", said)]


def shell_files() -> dict[str, Path]:
    """A /bin/sh for `kubectl exec`: the machine's dash and what it loads."""
    dash = Path("/bin/dash").resolve()
    return {"bin/sh": dash} | {str(path)[1:]: path for path in _libraries(dash)}


def _layer(files: Mapping[str, Path]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as layer:
        for directory in ("tmp", "etc"):
            made = tarfile.TarInfo(directory)
            made.type, made.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            layer.addfile(made)
        for name, source in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = source.stat().st_size, 0o755
            with open(source.resolve(), "rb") as content:
                layer.addfile(entry, content)
    return packed.getvalue()


def write_image(
    archive: Path, tag: str, files: Mapping[str, Path], command: Sequence[str], *arguments: str
) -> None:
    """Write `archive`: an image of these files (path inside -> file) with its entry point."""
    layer = _layer(files)
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
            "os": "linux",
            "config": {"Entrypoint": list(command), "Cmd": list(arguments)},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created_by": "cilia tests"}],
        }
    ).encode()
    named = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": named, "RepoTags": [tag], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as written:
        for name, content in (
            (named, config),
            ("layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            written.addfile(entry, io.BytesIO(content))

# SPDX-License-Identifier: Apache-2.0
"""A real kube-apiserver over a real etcd: started in three seconds, gone without a trace.

etcd keeps its files in memory (tmpfs, no fsync) and listens on a unix socket; the API server
listens on a free port of the loopback. Users are tokens; `ADMIN` may do everything, the others have
what RBAC gives them. Nothing else runs: no controller, no scheduler; a test writes what those would
(`tests/node` has a whole cluster).

    with ApiServer(tmp_path) as server:
        server.kubectl("create", "namespace", "shop")
        run_agent(kubeconfig=server.kubeconfig)        # as administrator
        run_agent(kubeconfig=server.kubeconfig_of_account("kube-system", "cilia"))
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from .assets import asset
from .programs import Program, ProgramEnded, ProgramFailed

ADMIN = "admin"
MEMORY = Path("/dev/shm")
CLIENTS, PEERS = "client:0", "peer:0"  # unix sockets in etcd's directory; it wants the port
START_ATTEMPTS = 3
READY_TIMEOUT_S = 240.0  # 2.5 s where nothing else runs; two busy cores need more


@dataclass(frozen=True)
class Settings:
    """What differs between a server for tests of the API and one for a whole cluster."""

    bind_address: str = "127.0.0.1"
    advertise_address: str = "192.0.2.10"  # of a range for documentation: nothing answers there
    port: int = 0  # 0: a free one
    service_cidrs: str = "10.96.0.0/16,fd00:10:96::/112"
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> groups
    flags: Sequence[str] = ("--disable-admission-plugins=ServiceAccount",)
    enter: Sequence[str] = ()  # command before each program: nsenter into a namespace
    reached_at: str = ""  # URL for the tests, where it is not the server's own address
    detached: bool = False  # lives on when the test's process ends


class ApiServer:
    """etcd and kube-apiserver with a directory each; a context manager.

    `restart()` and `kill()` keep address, certificate, tokens and contents.
    """

    def __init__(self, directory: Path, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.directory = directory / "control-plane"
        self.directory.mkdir(parents=True)
        self.certificate = self.directory / "certificates" / "apiserver.crt"
        self.kubeconfig = self.directory / "admin.kubeconfig"
        self.port = self.settings.port or free_port()
        self.url = self.settings.reached_at or f"https://{self.settings.bind_address}:{self.port}"
        groups = {ADMIN: ["system:masters"], **self.settings.users}
        self.tokens = {name: secrets.token_hex(16) for name in groups}
        self._write_tokens(groups)
        self._context: ssl.SSLContext | None = None
        self.memory = _memory_directory()
        self.etcd = self._program("etcd", self._etcd_flags())
        self.server = self._program("kube-apiserver", self._server_flags())

    def start(self) -> None:
        """Start etcd, then the server; returns when it is ready.

        Raises:
            ProgramFailed: one of the two ended or did not become ready.
        """
        self.etcd.start()
        self.etcd.wait_until(self._etcd_listens, READY_TIMEOUT_S)
        self.start_server()
        self.write_kubeconfig(self.kubeconfig, self.tokens[ADMIN])

    def start_server(self) -> None:
        """Start only the API server, over the etcd that is there.

        On a machine that is busy enough it gives up its first checks and ends; where it is a pod,
        kubelet starts it again, and so do we.
        """
        for _ in range(START_ATTEMPTS - 1):
            try:
                return self._start_server_once()
            except ProgramEnded:
                continue
        return self._start_server_once()

    def _start_server_once(self) -> None:
        self.server.start()
        self.server.wait_until(self.ready, READY_TIMEOUT_S)

    def restart(self) -> None:
        self.server.stop()
        self.start_server()

    def stop(self) -> None:
        self.server.stop()
        self.etcd.kill()  # its contents go with it
        shutil.rmtree(self.memory)

    def ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def request(
        self, method: str, path: str, body: Any = None, *, user: str = ADMIN
    ) -> tuple[int, bytes]:
        """One request as a user; its status and body."""
        host = self.url.removeprefix("https://")
        connection = http.client.HTTPSConnection(host, timeout=30, context=self._tls())
        try:
            headers = {"Authorization": f"Bearer {self.tokens[user]}"}
            if body is not None:
                body = json.dumps(body)
                kind = "merge-patch+json" if method == "PATCH" else "json"
                headers["Content-Type"] = f"application/{kind}"
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _tls(self) -> ssl.SSLContext:
        """Made once, as reading certificates costs more than a request."""
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self.certificate)
            # The certificate's names are those of the cluster, not of a relay in front of it.
            self._context.check_hostname = not self.settings.reached_at
        return self._context

    def get(self, path: str, *, user: str = ADMIN) -> Any:
        return self._json("GET", path, None, user)

    def post(self, path: str, body: Any, *, user: str = ADMIN) -> Any:
        """Create an object; `path` is that of its collection."""
        return self._json("POST", path, body, user)

    def patch(self, path: str, body: Any, *, user: str = ADMIN) -> Any:
        """Merge `body` into an object (RFC 7386)."""
        return self._json("PATCH", path, body, user)

    def delete(self, path: str, *, user: str = ADMIN) -> Any:
        return self._json("DELETE", path, None, user)

    def _json(self, method: str, path: str, body: Any, user: str) -> Any:
        status, text = self.request(method, path, body, user=user)
        if status >= 300:
            raise ProgramFailed(f"{method} {path}: {status} {text.decode(errors='replace')}")
        return json.loads(text)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl as the administrator, `text` on its input; what it printed.

        Raises:
            ProgramFailed: with what it said.
        """
        command = [str(asset("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ProgramFailed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, manifests: str) -> None:
        """Create or change what a YAML text names."""
        self.kubectl("apply", "--server-side", "-f", "-", text=manifests)

    def kubeconfig_of(self, user: str) -> Path:
        """A kubeconfig of one of the settings' users."""
        path = self.directory / f"{user.replace(':', '-')}.kubeconfig"
        self.write_kubeconfig(path, self.tokens[user])
        return path

    def kubeconfig_of_account(self, namespace: str, name: str, lifetime_s: int = 3600) -> Path:
        """A kubeconfig with a fresh token of a service account, which must exist."""
        token = self.kubectl(
            *("create", "token", name, f"--namespace={namespace}", f"--duration={lifetime_s}s")
        )
        path = self.directory / f"{namespace}-{name}.kubeconfig"
        self.write_kubeconfig(path, token.strip())
        return path

    def write_kubeconfig(self, path: Path, token: str, *, server: str | None = None) -> None:
        """Atomically, readable by its owner alone. `server`: another way to the same server."""
        cluster = {
            "server": server or self.url,
            "certificate-authority": str(self.certificate),
            "tls-server-name": "kubernetes.default.svc",
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(config, indent=2))
        temporary.rename(path)

    def __enter__(self) -> ApiServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _program(self, name: str, flags: Sequence[str]) -> Program:
        command = [*self.settings.enter, str(asset(name)), *flags]
        log = self.directory / f"{name}.log"
        detached = self.settings.detached
        return Program(name, command, log, directory=self.memory, detached=detached)

    def _etcd_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.memory / CLIENTS)) == 0

    def _etcd_flags(self) -> list[str]:
        return [
            "--name=test",
            "--data-dir=data",
            f"--listen-client-urls=unix://{CLIENTS}",
            f"--advertise-client-urls=unix://{CLIENTS}",
            f"--listen-peer-urls=unix://{PEERS}",
            f"--initial-advertise-peer-urls=unix://{PEERS}",
            f"--initial-cluster=test=unix://{PEERS}",
            "--unsafe-no-fsync",
            "--quota-backend-bytes=2147483648",
            "--logger=zap",
            "--log-level=warn",
        ]

    def _server_flags(self) -> list[str]:
        key = self.directory / "service-account.key"
        curve = ("ecparam", "-name", "prime256v1", "-genkey", "-noout")
        subprocess.run(["openssl", *curve, "-out", key], check=True, capture_output=True)
        return [
            f"--etcd-servers=unix://{self.memory / CLIENTS}",
            f"--bind-address={self.settings.bind_address}",
            f"--advertise-address={self.settings.advertise_address}",
            f"--secure-port={self.port}",
            f"--cert-dir={self.certificate.parent}",
            f"--service-cluster-ip-range={self.settings.service_cidrs}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--profiling=false",
            "--shutdown-delay-duration=0s",
            *self.settings.flags,
        ]

    def _write_tokens(self, groups: Mapping[str, Sequence[str]]) -> None:
        lines = [
            f'{self.tokens[name]},{name},{name},"{",".join(members)}"\n'
            for name, members in groups.items()
        ]
        path = self.directory / "tokens.csv"
        path.touch(mode=0o600)
        path.write_text("".join(lines))


def _memory_directory() -> Path:
    parent = MEMORY if os.access(MEMORY, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="cilia-etcd-", dir=parent))


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

# SPDX-License-Identifier: Apache-2.0
"""Who we are to an API server and how we know it: the `kubernetes` package's configuration.

It reads a kubeconfig (contexts, certificates, tokens, exec plugins, OIDC) or the files of a service
account, and renews tokens. The address is taken from it only where it says one that was written by
a person: the address of a service account is a ClusterIP, which this agent itself may have to
translate.
"""

from __future__ import annotations

import copy
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import kubernetes.config
import yaml
from kubernetes.client import Configuration
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.incluster_config import (
    SERVICE_CERT_FILENAME,
    SERVICE_TOKEN_FILENAME,
    InClusterConfigLoader,
)
from urllib3.util.retry import Retry

from cilia.k8s.errors import AccessError

SERVICE_NAME: Final = "kubernetes.default.svc"
_NO_ADDRESS: Final[Mapping[str, str]] = {
    "KUBERNETES_SERVICE_HOST": "address.invalid",
    "KUBERNETES_SERVICE_PORT": "443",
}


class Access:
    """Credentials, read again by `reload`. Its methods may block: call them in a thread.

    Raises AccessError.
    """

    def __init__(
        self,
        kubeconfig: Path | None = None,
        *,
        token_file: Path = Path(SERVICE_TOKEN_FILENAME),
        ca_file: Path = Path(SERVICE_CERT_FILENAME),
        anonymous: bool = False,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._token_file = token_file
        self._ca_file = ca_file
        self._anonymous = anonymous
        self._lock = threading.Lock()
        self._configuration: Any = None
        self.reload()

    @property
    def server(self) -> str:
        """The URL that the kubeconfig says; empty where there is none."""
        return str(self._configuration.host) if self._kubeconfig is not None else ""

    @property
    def server_hostname(self) -> str | None:
        """The name that the server's certificate is checked against, if it is not the address.

        With a service account it is one that every API server has, at whatever address.
        """
        if self._kubeconfig is None and not self._anonymous:
            return SERVICE_NAME
        return self._configuration.tls_server_name or None

    def reload(self) -> None:
        """Reads everything again: a token that was refused may have been replaced."""
        configuration = Configuration()
        try:
            if self._kubeconfig is not None:
                kubernetes.config.load_kube_config(
                    str(self._kubeconfig), client_configuration=configuration, persist_config=False
                )
            elif not self._anonymous:
                InClusterConfigLoader(
                    str(self._token_file), str(self._ca_file), environ=_NO_ADDRESS
                ).load_and_set(configuration)
        except (ConfigException, OSError, ValueError, yaml.YAMLError) as error:
            raise self._unusable(str(error)) from None
        except Exception as error:  # noqa: BLE001 - the package expects other values than these
            raise self._unusable(f"is no kubeconfig: {type(error).__name__}: {error}") from None
        with self._lock:
            self._configuration = configuration

    def _unusable(self, text: str) -> AccessError:
        return AccessError(f"{self._kubeconfig or self._token_file}: {' '.join(text.split())}")

    @property
    def settings(self) -> object:
        """Another object after each `reload`."""
        return self._configuration

    def configuration(self, url: str) -> Configuration:
        """Return settings of the package's own client for a server: our identity and trust, and
        none of its retries."""
        configuration = copy.copy(self._configuration)
        configuration.host = url
        configuration.proxy = None  # as reading, which goes to the server itself
        configuration.tls_server_name = self.server_hostname
        configuration.retries = Retry(False)
        return configuration

    def headers(self) -> list[tuple[str, str]]:
        """What identifies us in a request. Renews a token that runs out."""
        with self._lock:
            try:
                settings = self._configuration.auth_settings()
            except (ConfigException, OSError) as error:
                raise AccessError(str(error)) from None
        return [
            (setting["key"].lower(), setting["value"])
            for setting in settings.values()
            if setting["in"] == "header" and setting["value"]
        ]

    def tls(self) -> ssl.SSLContext:
        """The settings of a connection; read from the files each time, which may be renewed."""
        configuration = self._configuration
        try:
            context = ssl.create_default_context(
                cafile=configuration.ssl_ca_cert or None,
                cadata=_text(getattr(configuration, "ca_cert_data", None)),
            )
            if configuration.cert_file:
                context.load_cert_chain(configuration.cert_file, configuration.key_file)
        except (OSError, ssl.SSLError) as error:
            raise AccessError(f"certificates: {error}") from None
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif configuration.assert_hostname is False:
            context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        return context


def _text(data: Any) -> Any:
    return data or None

# SPDX-License-Identifier: Apache-2.0
"""Where a row came from, and which origin wins when two speak of one thing.

The names and their order are those of the field (cilium ``pkg/source``): the lower number is
preferred.
"""

from enum import StrEnum
from typing import Final


class Source(StrEnum):
    KUBE_APISERVER = "kube-apiserver"
    LOCAL = "local"
    KVSTORE = "kvstore"
    CUSTOM_RESOURCE = "custom-resource"
    K8S = "k8s"
    CLUSTERMESH = "clustermesh"
    DIRECTORY = "directory"
    API = "api"
    GENERATED = "generated"
    RESTORED = "restored"
    UNSPEC = ""


PRIORITY: Final[dict[Source, int]] = {source: rank for rank, source in enumerate(Source)}

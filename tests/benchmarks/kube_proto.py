# SPDX-License-Identifier: Apache-2.0
"""Objects as an API server stores them: protobuf in an envelope, which it reads faster than JSON.

Only the fields that the benchmarks write. Numbers are those of the `.proto` files that Kubernetes
publishes with its API types.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

Form = Mapping[str, Any]
# Field name -> number, and what a message has inside; "map": text to text.
Schema = dict[str, tuple[int, Any]]

_MANAGED: Final[Schema] = {
    "manager": (1, None),
    "operation": (2, None),
    "apiVersion": (3, None),
    "time": (4, "time"),
    "fieldsType": (6, None),
    "fieldsV1": (7, "raw"),
}
_METADATA: Final[Schema] = {
    "name": (1, None),
    "namespace": (3, None),
    "uid": (5, None),
    "creationTimestamp": (8, "time"),
    "labels": (11, "map"),
    "annotations": (12, "map"),
    "managedFields": (17, _MANAGED),
}
_SERVICE_PORT: Final[Schema] = {
    "name": (1, None),
    "protocol": (2, None),
    "port": (3, None),
    "targetPort": (4, "number"),
}
_SERVICE_SPEC: Final[Schema] = {
    "ports": (1, _SERVICE_PORT),
    "selector": (2, "map"),
    "clusterIP": (3, None),
    "type": (4, None),
    "sessionAffinity": (7, None),
    "ipFamilyPolicy": (17, None),
    "clusterIPs": (18, None),
    "ipFamilies": (19, None),
    "internalTrafficPolicy": (22, None),
}
_ENDPOINT: Final[Schema] = {
    "addresses": (1, None),
    "conditions": (2, {"ready": (1, None), "serving": (2, None), "terminating": (3, None)}),
    "targetRef": (4, {"kind": (1, None), "namespace": (2, None), "name": (3, None)}),
    "nodeName": (6, None),
}
_ENDPOINT_PORT: Final[Schema] = {"name": (1, None), "protocol": (2, None), "port": (3, None)}
_POD_SPEC: Final[Schema] = {
    "containers": (2, {"name": (1, None), "image": (2, None)}),
    "nodeName": (10, None),
}
_ADDRESS: Final[Schema] = {"type": (1, None), "address": (2, None)}
_KINDS: Final[dict[str, Schema]] = {
    "Service": {"metadata": (1, _METADATA), "spec": (2, _SERVICE_SPEC)},
    "EndpointSlice": {
        "metadata": (1, _METADATA),
        "endpoints": (2, _ENDPOINT),
        "ports": (3, _ENDPOINT_PORT),
        "addressType": (4, None),
    },
    "Node": {
        "metadata": (1, _METADATA),
        "spec": (2, {"podCIDR": (1, None)}),
        "status": (3, {"addresses": (5, _ADDRESS)}),
    },
    "Pod": {
        "metadata": (1, _METADATA),
        "spec": (2, _POD_SPEC),
        "status": (3, {"phase": (1, None), "podIP": (6, None)}),
    },
    "Namespace": {"metadata": (1, _METADATA)},
}


def stored(form: Form) -> bytes:
    """The value of an object's key in etcd."""
    kind = _text(1, form["apiVersion"]) + _text(2, form["kind"])
    return b"k8s\0" + _block(1, kind) + _block(2, _message(form, _KINDS[form["kind"]]))


def _message(form: Form, schema: Schema) -> bytes:
    return b"".join(
        part
        for name, (number, inside) in schema.items()
        if name in form
        for part in _field(number, inside, form[name])
    )


def _field(number: int, inside: Any, value: Any) -> Iterator[bytes]:
    if inside == "map":
        for key, text in value.items():
            yield _block(number, _text(1, key) + _text(2, text))
    elif inside == "time":
        seconds = int(datetime.fromisoformat(value).timestamp())
        yield _block(number, _number(1, seconds))
    elif inside == "number":
        yield _block(number, _number(1, 0) + _number(2, value))
    elif inside == "raw":
        yield _block(number, _text(1, json.dumps(value)))
    else:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(inside, dict):
                yield _block(number, _message(item, inside))
            elif isinstance(item, int):
                yield _number(number, int(item))
            else:
                yield _text(number, item)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _block(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _block(field, text.encode())

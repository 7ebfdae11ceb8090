# SPDX-License-Identifier: Apache-2.0
"""From a pydantic model to the structural OpenAPI v3 schema that the API server wants of a kind.

One definition serves both: what the API server validates is what the agent reads. A structural
schema has no references, no titles and no null: a field that may be absent is one that is not
required. Fields that a model does not know are kept, not pruned: pruning takes them away without a
word to whoever wrote them through another client than kubectl, whereas the agent tells them
(``custom``). Source: Kubernetes, «Extend the Kubernetes API with
CustomResourceDefinitions», structural schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

__all__ = ["openapi_schema"]

PRESERVE: Final = "x-kubernetes-preserve-unknown-fields"
# Facts about a value that OpenAPI v3 has under the same name.
_KEPT: Final = (
    *("type", "format", "pattern", "enum", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "description", "default"),
)


def openapi_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a model, all references written out."""
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        target = defs[schema["$ref"].rsplit("/", 1)[1]]
        return _structural({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, defs)
    if "anyOf" in schema:
        (only,) = (option for option in schema["anyOf"] if option.get("type") != "null")
        rest = {k: v for k, v in schema.items() if k != "anyOf"}
        return _structural({**only, **rest}, defs)
    found = {key: schema[key] for key in _KEPT if schema.get(key) not in (None, "")}
    found |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
    if "oneOf" in schema:
        found["oneOf"] = schema["oneOf"]
    if schema.get("const") is not None:
        found["enum"] = [schema["const"]]
    if schema.get("type") == "array":
        found["items"] = _structural(schema["items"], defs)
    if schema.get("type") == "object":
        found |= _object(schema, defs)
    return found


def _object(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    values = schema.get("additionalProperties")
    if isinstance(values, Mapping):
        return {"additionalProperties": _structural(values, defs)}
    properties = schema.get("properties", {})
    found: dict[str, Any] = {
        "properties": {name: _structural(field, defs) for name, field in properties.items()},
        PRESERVE: True,
    }
    if schema.get("required"):
        found["required"] = schema["required"]
    return found

# SPDX-License-Identifier: Apache-2.0
"""Objects to plain values and JSON, and back.

An object is its fields in declared order; an enumeration its value; anything that is not a plain
value (an address, a service name) what `str()` prints, read back by the `parse` class method of its
type.

Reading is for people and scripts: letter case, `_` and `-` in field names do not matter and absent
fields have the zero value of their type, so that a delete needs no more than the key's fields.
"""

from __future__ import annotations

import collections.abc
import contextlib
import enum
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from statedb.errors import UnreadableObject

if typing.TYPE_CHECKING:
    from statedb.table import Table


def _plain_hook(value: Any) -> Any:
    """What msgspec does not know: persistent maps and sets, and types that print themselves."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, collections.abc.Set):
        return frozenset(value)
    return str(value)


_JSON = msgspec.json.Encoder(enc_hook=_plain_hook, order="deterministic")


def to_plain(value: Any) -> Any:
    """The value as dict, list, tuple, str, number, bool and None; sets and mappings sorted."""
    return msgspec.to_builtins(value, enc_hook=_plain_hook, order="deterministic", str_keys=True)


def shown(table: Table[Any], obj: Any) -> Any:
    """What JSON and YAML show of an object: itself, or what the table's `to_json` makes of it."""
    return obj if table.to_json is None else table.to_json(obj)


def json_line(value: Any) -> bytes:
    """One line of JSON without the line's end."""
    try:
        return _JSON.encode(value)
    except TypeError:  # a mapping whose keys are no text: the encoder cannot sort these itself
        return _JSON.encode(to_plain(value))


def json_text(value: Any) -> str:
    """JSON indented by two, with a newline at the end."""
    return msgspec.json.format(json_line(value), indent=2).decode() + "\n"


_TRUE = frozenset(["true", "yes", "on", "y"])
_FALSE = frozenset(["false", "no", "off", "n"])


def from_plain(value: Any, row_type: Any, unknown: Callable[[str], object] | None = None) -> Any:
    """An object of `row_type` from plain values, such as `to_plain` makes.

    Raises:
        UnreadableObject: a value that its field does not take.
    """
    try:
        filled = _fill(value, row_type, unknown or (lambda name: None))
        return msgspec.convert(filled, row_type, strict=False, dec_hook=_parse, str_keys=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise UnreadableObject(f"no {getattr(row_type, '__name__', row_type)}: {error}") from error


def _parse(wanted: type, value: Any) -> Any:
    if isinstance(value, wanted):
        return value
    parse = getattr(wanted, "parse", None)
    return parse(value) if parse is not None else wanted(value)


def _fill(value: Any, wanted: Any, unknown: Callable[[str], object]) -> Any:
    """The value with field names as the type has them, zero values added, scalars understood."""
    arguments = typing.get_args(wanted)
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in arguments if option is not type(None)]
        return _fill(value, inner[0], unknown) if len(inner) == 1 and value is not None else value
    if isinstance(value, dict):
        if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
            return _fill_struct(value, wanted, unknown)
        if len(arguments) == 2:
            parse = getattr(arguments[0], "parse", str)  # msgspec leaves keys as they are
            return {parse(k): _fill(item, arguments[1], unknown) for k, item in value.items()}
    if isinstance(value, list) and arguments:
        return [_fill(item, arguments[0], unknown) for item in value]
    return _scalar(value, wanted) if isinstance(value, str) else value


def _fill_struct(
    value: dict[str, Any], wanted: type[msgspec.Struct], unknown: Callable[[str], object]
) -> dict[str, Any]:
    fields = msgspec.structs.fields(wanted)
    by_name = {_fold(name): field for field in fields for name in (field.encode_name, field.name)}
    filled: dict[str, Any] = {}
    for name, item in value.items():
        field = by_name.get(_fold(str(name)))
        if field is None:
            unknown(str(name))
        elif item is not None or _takes_none(field.type):
            filled[field.encode_name] = _fill(item, field.type, unknown)
    for field in fields:
        if field.required and field.encode_name not in filled:
            with contextlib.suppress(LookupError):
                filled[field.encode_name] = _zero(field.type, unknown)
    return filled


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def _takes_none(wanted: Any) -> bool:
    return wanted in (None, type(None), Any) or type(None) in typing.get_args(wanted)


def _scalar(value: str, wanted: Any) -> Any:
    if wanted is bool and value.casefold() in _TRUE | _FALSE:
        return value.casefold() in _TRUE
    if wanted is int:
        with contextlib.suppress(ValueError):
            return int(value, 0)
    return value


def _zero(wanted: Any, unknown: Callable[[str], object]) -> Any:
    """The plain form of a type's zero value.

    Raises:
        LookupError: the type has none; msgspec's own message then names the missing field.
    """
    if _takes_none(wanted):
        return None
    kind = typing.get_origin(wanted) or wanted
    if kind in (str, int, float, bool):
        return kind()
    if kind in (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Set):
        return []
    if kind is bytes:
        return ""
    if kind in (dict, collections.abc.Mapping):
        return {}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind)).value
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _fill_struct({}, kind, unknown)
    try:
        return kind()
    except (TypeError, ValueError) as error:
        raise LookupError(wanted) from error

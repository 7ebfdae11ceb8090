# SPDX-License-Identifier: Apache-2.0
"""Command-line flags and environment variables made from a pydantic model, one flag a field."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

M = TypeVar("M", bound=BaseModel)
F = TypeVar("F", bound=Callable[..., Any])


def flag_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def _plain_type(annotation: Any) -> Any:
    """The type inside `X | None`."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation


def _click_type(annotation: Any) -> dict[str, Any]:
    plain = _plain_type(annotation)
    if plain is bool:
        return {"type": bool, "is_flag": False, "flag_value": True, "metavar": "[BOOL]"}
    if typing.get_origin(plain) is Literal:
        return {"type": click.Choice(list(typing.get_args(plain)))}
    if plain is int:
        return {"type": int, "metavar": "N"}
    if plain is Path:
        return {"type": click.Path(path_type=Path)}
    return {"type": str, "metavar": "TEXT"}


def _default_text(field: FieldInfo) -> str:
    if field.default_factory is not None or field.default in (None, ""):
        return ""
    shown = str(field.default)
    return f" [default: {shown.lower() if isinstance(field.default, bool) else shown}]"


def options_of(model: type[BaseModel]) -> Callable[[F], F]:
    """A decorator that gives a click command one option for each field of the model.

    Options that a person did not give are absent from the call, so that the model's defaults hold.
    """

    def decorate(function: F) -> F:
        for name, field in reversed(model.model_fields.items()):
            help_text = f"{field.description}{_default_text(field)}"
            function = click.option(
                flag_name(name),
                name,
                default=None,
                envvar=f"CILIA_{name.upper()}",
                help=help_text,
                **_click_type(field.annotation),
            )(function)
        return function

    return decorate


def validated(model: type[M], given: dict[str, Any]) -> M:
    """The model from what was given; raises click.UsageError naming each wrong option."""
    try:
        return model(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [
            f"{flag_name(str(entry['loc'][0]))}: {entry['msg']} (got {entry['input']!r})"
            for entry in error.errors()
        ]
        raise click.UsageError("\n".join(lines)) from None

# SPDX-License-Identifier: Apache-2.0
"""Options of a program: one pydantic model, read from flags, environment, a directory, defaults.

Each field `some_option` is the flag `--some-option`, the variable `CILIA_SOME_OPTION` and the file
`some-option` of `--config-dir` (what a ConfigMap looks like when it is mounted), in this order of
precedence. Whoever has the model can ask where each value came from.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import click
import msgspec
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from cilia.regular_files import read_regular

__all__ = [
    "ProgramConfig",
    "Setting",
    "flag_name",
    "from_process",
    "option_name",
    "options_of",
    "resolved",
    "validated",
    "variable_name",
]

M = TypeVar("M", bound="ProgramConfig")
F = TypeVar("F", bound=Callable[..., Any])

ENVIRONMENT = "CILIA_"
DEFAULT = "default"
# Variables of the command itself; see cilia/__main__.py.
NO_OPTIONS = frozenset({"CILIA_INSTANCE", "CILIA_SOCKET"})
# How alike a variable must be to an option to be taken for a misspelt one. Others are left alone:
# a container has CILIA_..._SERVICE_HOST for every Service whose name begins so.
MISSPELT = 0.85


class Setting(msgspec.Struct, frozen=True):
    """One option as it is in force. `origin` says who set it."""

    name: str
    value: Any
    default: Any
    origin: str


class ProgramConfig(BaseModel):
    """What every program's options have; frozen once read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config_dir: Annotated[
        Path | None,
        Field(description="Directory with a file for each option, as a mounted ConfigMap is."),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level to log.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "console", "json"],
        Field(description="console on a terminal and json elsewhere, or one of them always."),
    ] = "auto"

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def settings(self) -> list[Setting]:
        """Every option with its value and where it came from, by name."""
        values = self.model_dump(mode="json")
        return sorted(
            (
                Setting(
                    option_name(name),
                    values[name],
                    _default(field),
                    self._origins.get(name, DEFAULT),
                )
                for name, field in type(self).model_fields.items()
            ),
            key=lambda setting: setting.name,
        )


def option_name(field: str) -> str:
    return field.replace("_", "-")


def flag_name(field: str) -> str:
    return "--" + option_name(field)


def variable_name(field: str) -> str:
    return ENVIRONMENT + field.upper()


def options_of(model: type[BaseModel]) -> Callable[[F], F]:
    """A decorator that gives a click command one flag for each field of the model.

    Flags that a person did not give are None in the call.
    """

    def decorate(function: F) -> F:
        for name, field in reversed(model.model_fields.items()):
            function = click.option(
                flag_name(name),
                name,
                default=None,
                help=f"{field.description}{_default_text(field)}",
                **_click_type(field.annotation),
            )(function)
        return function

    return decorate


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


def _default(field: FieldInfo) -> Any:
    """As JSON; None where it is computed or where there is none."""
    if field.default_factory is not None or field.is_required():
        return None
    return str(field.default) if isinstance(field.default, Path) else field.default


def _default_text(field: FieldInfo) -> str:
    default = _default(field)
    if default in (None, ""):
        return ""
    return f" [default: {str(default).lower() if isinstance(default, bool) else default}]"


def resolved(model: type[M], flags: Mapping[str, Any], environ: Mapping[str, str]) -> M:
    """The model from flags (None: not given), environment and configuration directory.

    Raises:
        click.UsageError: names every option that is unknown or wrong, and where it stands.
    """
    from_flags = {
        name: (value, f"flag {flag_name(name)}")
        for name, value in flags.items()
        if value is not None
    }
    unknown: list[str] = []
    from_environment = _environment(model, environ, unknown)
    directory, _ = {**from_environment, **from_flags}.get("config_dir", (None, ""))
    from_directory = _directory(model, Path(directory), unknown) if directory else {}
    return _built(model, {**from_directory, **from_environment, **from_flags}, unknown)


def validated(model: type[M], given: Mapping[str, Any]) -> M:
    """The model from flags alone; raises click.UsageError naming each wrong option."""
    return resolved(model, given, {})


Given = dict[str, tuple[Any, str]]  # field -> value, origin


def _environment(model: type[M], environ: Mapping[str, str], unknown: list[str]) -> Given:
    fields = {variable_name(name): name for name in model.model_fields}
    found: Given = {}
    for variable in sorted(environ):
        if variable in fields:
            _take(model, found, fields[variable], environ[variable], f"environment {variable}")
        elif variable.startswith(ENVIRONMENT) and variable not in NO_OPTIONS:
            near = difflib.get_close_matches(variable, fields, n=1, cutoff=MISSPELT)
            unknown += [f"environment {variable} is no option: is {name} meant?" for name in near]
    return found


def _directory(model: type[M], directory: Path, unknown: list[str]) -> Given:
    """One file an option; hidden names are how a mounted ConfigMap swaps its content."""
    fields = {option_name(name): name for name in model.model_fields if name != "config_dir"}
    found: Given = {}
    try:
        paths = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
        for path in paths:
            if path.name in fields:
                _take(
                    model,
                    found,
                    fields[path.name],
                    read_regular(path).decode().strip(),
                    f"file {path}",
                )
            else:
                unknown.append(f"{path} is no option{_meant(path.name, fields)}")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--config-dir={directory}: {error}") from None
    return found


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": is {near[0]} meant?" if near else ""


def _take(model: type[M], found: Given, name: str, text: str, origin: str) -> None:
    """An empty text is a value for texts only; any other option is then as if not given."""
    if text or _plain_type(model.model_fields[name].annotation) is str:
        found[name] = (text, origin)


def _built(model: type[M], given: Given, unknown: list[str]) -> M:
    lines = list(unknown)
    try:
        config = model(**{name: value for name, (value, _) in given.items()})
    except ValidationError as error:
        for entry in error.errors():
            name = str(entry["loc"][0]) if entry["loc"] else ""
            lines.append(_wrong(name, entry["msg"].removeprefix("Value error, "), given))
    else:
        config._origins.update({name: origin for name, (_, origin) in given.items()})
    if lines:
        raise click.UsageError("\n".join(lines))
    return config


def _wrong(name: str, message: str, given: Given) -> str:
    if name not in given:
        return f"{flag_name(name)}: {message}" if name else message
    value, origin = given[name]
    where = "" if origin.startswith("flag ") else f", {origin}"
    return f"{flag_name(name)}: {message} (got {value!r}{where})"


def from_process(model: type[M], flags: Mapping[str, Any]) -> M:
    """As `resolved`, with the environment of this process."""
    return resolved(model, flags, os.environ)

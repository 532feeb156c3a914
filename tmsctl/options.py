"""Decides what options are called and say. Groups of options are frozen dataclasses, so that commands share them.

A command takes a parameter annotated with a group; `grouped` shows typer the options and hands the command the group.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import typing
from collections.abc import Callable

import typer

from tmsctl import completion


class Output(enum.StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


SERVER_PANEL = "Server and output"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Printing:
    """For every command that answers something."""

    output: typing.Annotated[
        Output,
        typer.Option(
            "--output",
            "-o",
            metavar="FORM",
            help="table (for people), json, yaml or name; json and yaml have every field under its API name, name is ids only, one a line.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = Output.TABLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """For every command that calls a server."""

    target: typing.Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="TARGET",
            envvar="TMS_TARGET",
            help="Saved target, or HOST:PORT. Default: the target in use, else 127.0.0.1:30345.",
            autocompletion=completion.targets,
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None
    timeout: typing.Annotated[
        str,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            envvar="TMS_TIMEOUT",
            help="Longest wait for one answer; calls that may be repeated are, while the server restarts.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = "15s"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scope(Server):
    """For every command that looks into a namespace."""

    namespace: typing.Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME",
            envvar="TMS_NAMESPACE",
            help="Where leases, names, pools and workers live. Default: default.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(Scope, Printing):
    """Server, namespace and output."""


LeaseArgument = typing.Annotated[
    str, typer.Argument(metavar="LEASE", help="Lease id or name.", autocompletion=completion.leases, show_default=False)
]
LeaseArguments = typing.Annotated[
    list[str] | None,
    typer.Argument(metavar="LEASE", help="Lease ids or names.", autocompletion=completion.leases),
]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces each parameter that is annotated with a dataclass by one keyword parameter for each of its fields."""
    plain = inspect.signature(command, eval_str=True)
    groups: dict[str, type[typing.Any]] = {
        each.name: each.annotation
        for each in plain.parameters.values()
        if isinstance(each.annotation, type) and dataclasses.is_dataclass(each.annotation)
    }

    @functools.wraps(command)
    def expanded(**values: object) -> None:
        taken = {name: _take(group, values) for name, group in groups.items()}
        command(**values, **taken)

    parameters = [option for each in plain.parameters.values() for option in _options(each, groups)]
    vars(expanded).pop("__wrapped__")
    vars(expanded)["__signature__"] = plain.replace(parameters=parameters)
    expanded.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return expanded


def _options(plain: inspect.Parameter, groups: dict[str, type[typing.Any]]) -> list[inspect.Parameter]:
    if plain.name not in groups:
        return [plain.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    group = groups[plain.name]
    hints = typing.get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    fields = dataclasses.fields(group)
    return [inspect.Parameter(each.name, kind, default=each.default, annotation=hints[each.name]) for each in fields]


def _take(group: type[typing.Any], values: dict[str, object]) -> object:
    return group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})

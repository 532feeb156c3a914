"""The page of the server's settings, from the tree of settings itself."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pydantic
import pydantic_core

from docs.pages import markdown
from tms_server import pods, sections, settings


def text() -> str:
    """One table for each section; keys as they are written in the TOML file."""
    opening = (
        "Every setting can be given as a flag (`--api-port`), as a variable (`TMS_API__PORT`) or in the TOML file "
        "(`[api]`, `port`), and flags win over variables, variables over the file. `tms-server --print-config` prints "
        "what is in force. The tables are generated from the settings themselves."
    )
    lines = ["# Settings of tms-server", "", opening, "", "## Top level", "", *_table(settings.Settings)]
    for name, section in _sections():
        lines += [f"## {name}", "", (section.__doc__ or "").strip(), "", *_table(section)]
    return "\n".join(lines).rstrip() + "\n"


def _sections() -> Iterator[tuple[str, type[pydantic.BaseModel]]]:
    for name, field in settings.Settings.model_fields.items():
        if _is_section(field.annotation):
            yield f"[{name}]", typing.cast("type[pydantic.BaseModel]", field.annotation)
    yield "[repositories.NAME]", sections.Repository
    yield "[repositories.NAME.keys]", sections.Keys
    yield "[pools.NAME]", sections.Pool
    yield "[kubernetes.profiles.NAME]", pods.Profile
    yield "[kubernetes.profiles.NAME.cache]", pods.Cache
    yield "[kubernetes.programs.NAME]", pods.Program


def _table(section: type[pydantic.BaseModel]) -> Iterator[str]:
    yield from ("| key | default | meaning |", "| --- | --- | --- |")
    for name, field in section.model_fields.items():
        if not _is_section(field.annotation):
            yield f"| `{name}` | {_default(field)} | {markdown.cell(field.description or '')} |"
    yield ""


def _default(field: pydantic.fields.FieldInfo) -> str:
    value = field.default
    if value is pydantic_core.PydanticUndefined or value in (None, "", ()) or isinstance(value, pydantic.SecretStr):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, sections.Section)

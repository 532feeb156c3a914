"""The page of tmsctl, from the commands themselves."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import typer

from docs.pages import markdown
from tmsctl import app, errors

ROOT = pathlib.Path(__file__).resolve().parents[2]


def text() -> str:
    """The page of tmsctl."""
    command = typer.main.get_command(app.app)
    context = command.make_context("tmsctl", ["--help"], resilient_parsing=True)
    return "\n".join([*_command(command, context, "tmsctl"), *_lease_file(), *_codes()]) + "\n"


def _command(command: Any, context: Any, path: str) -> Iterator[str]:
    yield f"{'#' * min(1 + path.count(' '), 4)} `{path}`"
    yield ""
    yield from _prose(command.help or "")
    yield from ("```console", f"$ {path} {' '.join(command.collect_usage_pieces(context))}", "```", "")
    yield from _options(command, context)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        below = command.get_command(context, name)
        yield from _command(below, typer.Context(below, parent=context, info_name=name), f"{path} {name}")


def _options(command: Any, context: Any) -> Iterator[str]:
    records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    if records:
        yield from ("| option | meaning |", "| --- | --- |")
        yield from (f"| `{markdown.cell(name)}` | {markdown.cell(said)} |" for name, said in records)
        yield ""


def _prose(text: str) -> Iterator[str]:
    for block in text.strip().split("\n\n"):
        kept = block.startswith("\b")
        body = block.removeprefix("\b\n")
        yield from ("```text", body, "```", "") if kept else (body, "")


def _lease_file() -> Iterator[str]:
    example = (ROOT / "examples" / "lease.yaml").read_text(encoding="utf-8")
    yield from ("## lease.yaml", "", "Every key there is; another one is refused.", "")
    yield from ("```yaml", example.rstrip(), "```", "")


def _codes() -> Iterator[str]:
    yield from ("## Exit codes", "", "| code | meaning |", "| --- | --- |")
    yield from (f"| {code.value} | {meaning} |" for code, meaning in errors.MEANINGS.items())
    yield ""
    yield (
        f"`tmsctl run` exits with its command's code; when the lease itself fails, with {errors.RUN_OFFSET} plus the "
        "code above."
    )

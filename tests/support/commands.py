"""Calls of tmsctl in texts, and the options that each command takes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import typer.main

from tmsctl import app


def shown(text: str) -> Iterator[list[str]]:
    """The words of each call of tmsctl, up to what ends it."""
    for call in re.findall(r"(?<![\w.-])tmsctl ([a-z][^\n|;&)`>#]*)", text.replace("\\\n", " ")):
        yield call.replace('"', "").split()


def options(path: list[str]) -> set[str]:
    """Options of the command that the words lead to; KeyError where they begin with none."""
    command = typer.main.get_command(app.app)
    for place, word in enumerate(path):
        inner = getattr(command, "commands", {})  # typer's groups are not click's
        if word not in inner:
            if inner and place < 2:
                raise KeyError(" ".join(path))
            break
        command = inner[word]
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help", "--"}

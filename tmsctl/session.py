"""Decides how the options of a command become a connection and a printer."""

from __future__ import annotations

import sys

from tmsctl import errors, late, options


def connect(server: options.Server) -> late.client.Client:
    """A client of the target; nothing is sent yet. CliError when the target or its files are wrong."""
    target = late.config.resolve(server.target)
    return late.client.Client(target, timeout_s=seconds("--timeout", server.timeout), notify=note)


def note(text: str) -> None:
    """Tells a person something beside the answer."""
    print(f"tmsctl: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a command line prints


def seconds(option: str, text: str) -> float:
    """The seconds of an option's duration; CliError names the option."""
    try:
        span = late.values.parse_duration(text).total_seconds()
    except ValueError as problem:
        raise errors.CliError(str(problem), code=errors.Exit.USAGE, field=option) from None
    if span <= 0:
        raise errors.CliError("write more than 0s", code=errors.Exit.USAGE, field=option)
    return span

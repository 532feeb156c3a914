"""The page of tms-worker's flags, from the table that parses them."""

from __future__ import annotations

from collections.abc import Iterator

from docs.pages import markdown
from gpu_worker import flags


def text() -> str:
    """What is acted on, what is ignored with a notice, what is refused."""
    opening = (
        "tms-worker takes Triton's flags by their names, as `--flag=value` or `--flag value`. The tables are generated "
        "from `gpu_worker/flags.py`."
    )
    lines = ["# Flags of tms-worker", "", opening, ""]
    for title, group in flags.GROUPS:
        lines += [f"## {title}", "", *_acted_on(group)]
    lines += ["## Accepted, and ignored with a notice in the log", "", *_ignored()]
    lines += [
        "## Refused at the start",
        "",
        "They would change what the server does, and this version does not do it.",
        "",
    ]
    lines.append(", ".join(f"`--{name}`" for name in flags.REFUSED) + ".")
    return "\n".join(lines).rstrip() + "\n"


def _acted_on(group: tuple[flags.Flag, ...]) -> Iterator[str]:
    yield from ("| flag | default | meaning |", "| --- | --- | --- |")
    for flag in group:
        names = ", ".join(f"`--{name}`" for name in (flag.name, *flag.aliases))
        default = "" if flag.default in (None, "", ()) else f"`{str(flag.default).lower()}`"
        yield f"| {names} | {default} | {markdown.cell(flag.help)} |"
    yield ""


def _ignored() -> Iterator[str]:
    yield from ("| flag | why it changes nothing |", "| --- | --- |")
    yield from (f"| `--{name}` | {markdown.cell(why)} |" for name, why in flags.IGNORED.items())
    yield ""

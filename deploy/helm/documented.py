"""Reads the chart's values.yaml with its comments: the one place where a value, its default and its meaning are said.

A comment that begins with ``# --`` documents the key below it, with all that is below that key. Every key must be
documented, itself or by one above it. Writes nothing.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

CHART = pathlib.Path(__file__).resolve().parent / "tms"
_MARK = "# --"


class UndocumentedError(Exception):
    """A key of values.yaml without a comment of its own or above it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """One documented key: its dotted path, its default and what it means."""

    path: str
    default: Any
    meaning: str


def values(chart: pathlib.Path = CHART) -> tuple[Value, ...]:
    """All documented keys in their order. UndocumentedError names a key without a comment."""
    text = (chart / "values.yaml").read_text(encoding="utf-8")
    tree = yaml.compose(text)
    assert isinstance(tree, yaml.MappingNode)
    return tuple(_walk(tree, (), text.splitlines()))


def _walk(node: yaml.MappingNode, above: tuple[str, ...], lines: Sequence[str]) -> Iterator[Value]:
    for key, value in node.value:
        path = (*above, str(key.value))
        meaning = _comment(lines, key.start_mark.line)
        if meaning:
            yield Value(".".join(path), _plain(value), meaning)
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, path, lines)
        else:
            raise UndocumentedError(f"{'.'.join(path)}: write '{_MARK} ...' above it in values.yaml")


def _plain(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def _comment(lines: Sequence[str], key_line: int) -> str:
    found: list[str] = []
    for line in reversed(lines[:key_line]):
        text = line.strip()
        if not text.startswith("#"):
            return ""
        found.append(text.removeprefix(_MARK).removeprefix("#").strip())
        if text.startswith(_MARK):
            return " ".join(reversed(found))
    return ""

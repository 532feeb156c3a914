"""Label selectors as Kubernetes writes them: equality, sets, existence and comparison, joined by commas."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator, Mapping

from tms_server.model import errors

LONGEST = 4096
_TOKEN = re.compile(r"\s*(?:(==|!=|=|!|\(|\)|,|>|<)|([^\s=!(),<>]+))")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_FIELD = "labelSelector"


class Operator(enum.StrEnum):
    """How a label is compared."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    ABSENT = "!"
    GREATER = ">"
    LESS = "<"


@dataclasses.dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return found in self.values
            case Operator.NOT_IN:
                return found not in self.values
            case Operator.EXISTS:
                return found is not None
            case Operator.ABSENT:
                return found is None
        return _compared(found, self.operator, next(iter(self.values)))


@dataclasses.dataclass(frozen=True, slots=True)
class Selector:
    """All conditions must hold; none at all selects everything."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(each.matches(labels) for each in self.requirements)

    def only(self, key: str) -> frozenset[str] | None:
        """Values that the label can have in what is selected; None where it is not bound to some."""
        sets = [each.values for each in self.requirements if each.key == key and each.operator is Operator.IN]
        return frozenset.intersection(*sets) if sets else None


def parse(text: str) -> Selector:
    """The selector of a query; InvalidField when it is none."""
    if len(text) > LONGEST:
        raise errors.InvalidField(_FIELD, f"give at most {LONGEST} characters")
    tokens = _Tokens(text)
    if tokens.peek() is None:
        return Selector(())
    found = [_requirement(tokens)]
    while tokens.peek() is not None:
        tokens.take(",")
        found.append(_requirement(tokens))
    return Selector(tuple(found))


class _Tokens:
    """Words and signs of a selector, read once from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._all = list(self._split(text))
        self._next = 0

    def peek(self) -> str | None:
        return self._all[self._next] if self._next < len(self._all) else None

    def take(self, expected: str = "") -> str:
        found = self.peek()
        if found is None or (expected and found != expected):
            raise self.wrong(f"{expected or 'more'} is missing" if found is None else f"{found!r} is not expected")
        self._next += 1
        return found

    def wrong(self, why: str) -> errors.InvalidField:
        return errors.InvalidField(_FIELD, f"unable to parse {self._text!r}: {why}")

    def _split(self, text: str) -> Iterator[str]:
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            assert match is not None, "every character that is no space begins a token"
            yield match.group(1) or match.group(2)
            at = match.end()


def _requirement(tokens: _Tokens) -> Requirement:
    if tokens.peek() == "!":
        tokens.take()
        return Requirement(_key(tokens), Operator.ABSENT)
    key = _key(tokens)
    match tokens.peek():
        case None | ",":
            return Requirement(key, Operator.EXISTS)
        case "=" | "==":
            tokens.take()
            return Requirement(key, Operator.IN, frozenset({_value(tokens)}))
        case "!=":
            tokens.take()
            return Requirement(key, Operator.NOT_IN, frozenset({_value(tokens)}))
        case ">" | "<":
            operator = Operator(tokens.take())
            return Requirement(key, operator, frozenset({_number(tokens)}))
        case "in" | "notin":
            operator = Operator(tokens.take())
            return Requirement(key, operator, _set(tokens))
    raise tokens.wrong(f"{tokens.peek()!r} is no operator")


def _key(tokens: _Tokens) -> str:
    key = tokens.take()
    prefix, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and not (_PREFIX.fullmatch(prefix) and len(prefix) <= 253)):
        raise tokens.wrong(f"{key!r} is no label key")
    return key


def _value(tokens: _Tokens) -> str:
    """A label value; nothing before a comma, a bracket or the end is the empty one."""
    if tokens.peek() in (None, ",", ")"):
        return ""
    value = tokens.take()
    if not _NAME.fullmatch(value):
        raise tokens.wrong(f"{value!r} is no label value")
    return value


def _number(tokens: _Tokens) -> str:
    value = _value(tokens)
    if not value.isascii() or not value.isdigit():
        raise tokens.wrong(f"{value!r} is no integer")
    return value


def _set(tokens: _Tokens) -> frozenset[str]:
    tokens.take("(")
    values = {_value(tokens)}
    while tokens.peek() == ",":
        tokens.take()
        values.add(_value(tokens))
    tokens.take(")")
    return frozenset(values)


def _compared(found: str | None, operator: Operator, bound: str) -> bool:
    if found is None or not found.isascii() or not found.isdigit():
        return False
    return int(found) > int(bound) if operator is Operator.GREATER else int(found) < int(bound)

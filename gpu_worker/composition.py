"""Which models are composed of which, and whether an ensemble has all that it needs.

Pure: what serves, and what every model is composed of, come as values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from gpu_worker.engine import border, graph, spec

Composed = Mapping[str, Collection[str]]
"""The names that each model is composed of; models that are composed of nothing may be missing."""


class Model(Protocol):
    """A model as far as ensembles of it need to know."""

    @property
    def specs(self) -> dict[str, spec.ModelSpec]:
        """Of the versions that serve, ascending."""
        ...

    @property
    def reason(self) -> str:
        """Why none serves."""
        ...


def dependents(name: str, composed: Composed) -> list[str]:
    """Those composed of that model, sorted."""
    return sorted(each for each, names in composed.items() if name in names)


def circle(name: str, composed: Composed) -> tuple[str, ...]:
    """The way on which a model is composed of itself; empty where it is not."""
    ways: dict[str, tuple[str, ...]] = {name: (name,)}
    left = [name]
    while left:
        at = left.pop()
        for each in sorted(composed.get(at, ())):
            if each == name:
                return (*ways[at], name)
            if each not in ways:
                ways[each] = (*ways[at], each)
                left.append(each)
    return ()


def waves(names: Iterable[str], composed: Composed) -> list[list[str]]:
    """The names in groups, every model after those that are composed of it; none may be composed of itself."""
    left = set(names)
    found: list[list[str]] = []
    while left:
        below = {inner for name in left for inner in _below(name, composed)}
        wave = sorted(left - below) or sorted(left)
        found.append(wave)
        left.difference_update(wave)
    return found


def _below(name: str, composed: Composed) -> set[str]:
    """All that a model is composed of, and what that is composed of."""
    found: set[str] = set()
    left = [name]
    while left:
        fresh = set(composed.get(left.pop(), ())) - found
        found |= fresh
        left += fresh
    return found


def needed(
    name: str, steps: graph.Graph, composed: Composed, find: Callable[[str], Model | None]
) -> dict[tuple[str, str], spec.ModelSpec]:
    """What serves the steps of an ensemble now, by name and version as they say them.

    Raises InferenceError INVALID_ARGUMENT, with the reason, where a model or a version does not serve.
    """
    way = circle(name, composed)
    if way:
        raise _invalid(f"circular dependency between ensembles: {name} -> ... -> {way[-2]} -> {name}")
    unknown = sorted(each for each in steps.names if find(each) is None)
    if unknown:
        raise _invalid(f"ensemble {name} contains models that are not available or ambiguous: {', '.join(unknown)}")
    return {key: _serving(name, *key, find) for key in steps.models}


def _serving(name: str, model: str, version: str, find: Callable[[str], Model | None]) -> spec.ModelSpec:
    found = find(model)
    specs: dict[str, spec.ModelSpec] = found.specs if found is not None else {}
    if not specs:
        why = found.reason if found is not None else ""
        told = f" Model '{model}' loading failed with error: {why}" if why else ""
        raise _invalid(f"ensemble '{name}' depends on '{model}' which has no loaded version.{told}")
    if version and version not in specs:
        raise _invalid(f"ensemble '{name}' depends on '{model}' whose required version {version} is not loaded.")
    return specs[version or next(reversed(specs))]


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)

"""What to do next: the pure difference between what is desired and what is held.

Decides which model is fetched, loaded, unloaded or forgotten, and in which order; and what an index read from the
worker's server means for what was believed. Must never read a clock, touch a socket or a file, or start anything.

Order: models served together load in the order of the list. Models are served together when an endpoint names both (or
when no endpoint names either); a store that does not answer for one lease so holds back that lease alone. One load runs
at a time. A name that is held with other bytes is unloaded before the wanted bytes are loaded.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Iterator, Mapping

from sidecar import values


class Phase(enum.Enum):
    """How far a model has come; a name without a phase has not begun."""

    FETCHING = "fetching"
    FETCHED = "fetched"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    WAITING = "waiting"  # failed in a way that passes; begun again later
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why something did not work: a stable CamelCase word, a sentence, and whether it passes by itself."""

    reason: str
    message: str
    retryable: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class LoadMemory:
    """Bytes the worker held before, at the peak of and after a load; 0 unknown."""

    before_bytes: int = 0
    peak_bytes: int = 0
    after_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What is under a name now.

    Once fetched, `learnt` are the source's files with their sha256, and `contents` those of the model's directory.
    """

    key: values.ModelKey
    phase: Phase
    failure: Failure | None = None
    learnt: tuple[values.SourceFile, ...] = ()
    contents: tuple[values.SourceFile, ...] = ()
    memory: LoadMemory = LoadMemory()


@dataclasses.dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the files of the model into the cache."""

    model: values.Model


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """Load the fetched model into the server."""

    model: values.Model


@dataclasses.dataclass(frozen=True, slots=True)
class Unload:
    """Drain the model and unload it: one that is held, or one that was and that the server may remember."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Forget:
    """Stop and drop what the server does not serve."""

    name: str


Action = Fetch | Load | Unload | Forget


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """What is held once the server was asked, and which ready models it had lost."""

    held: dict[str, Held]
    lost: frozenset[str]


def plan(desired: values.Desired, held: Mapping[str, Held], recorded: Collection[str] = ()) -> tuple[Action, ...]:
    """The actions that can begin now. Applying them and planning again ends with none.

    `recorded` are the names whose load was ever asked for and not undone: a server remembers one that failed, and is
    not ready for as long as it does.
    """
    strays = _strays(desired, held, recorded)
    return (*_departures(desired, held), *strays, *_fetches(desired, held), *_next_load(desired, held))


def settle(held: Mapping[str, Held], loaded: Collection[str], recorded: Mapping[str, values.ModelKey]) -> Settled:
    """Corrects what is held by the names the server says are loaded.

    A loaded model that this process did not load is what `recorded` says; one that nobody recorded is of unknown bytes,
    so that its key equals no wanted one.
    """
    lost = frozenset(name for name, each in held.items() if each.phase is Phase.READY and name not in loaded)
    kept = {name: each for name, each in held.items() if name not in lost}
    for name in loaded:
        if name not in kept or kept[name].phase not in _IN_SERVER:
            kept[name] = Held(recorded.get(name, values.ModelKey(name, "", "")), Phase.READY)
    return Settled(kept, lost)


_IN_SERVER = {Phase.LOADING, Phase.READY, Phase.DRAINING}
_SETTLED = {Phase.READY, Phase.FAILED}


def _departures(desired: values.Desired, held: Mapping[str, Held]) -> Iterator[Action]:
    wanted = {model.name: model.key for model in desired.models}
    for name, each in held.items():
        if wanted.get(name) == each.key or each.phase in {Phase.LOADING, Phase.DRAINING}:
            continue
        yield Unload(name) if each.phase is Phase.READY else Forget(name)


def _strays(desired: values.Desired, held: Mapping[str, Held], recorded: Collection[str]) -> Iterator[Action]:
    wanted = {model.name for model in desired.models}
    return (Unload(name) for name in recorded if name not in wanted and name not in held)


def _fetches(desired: values.Desired, held: Mapping[str, Held]) -> Iterator[Action]:
    return (Fetch(model) for model in desired.models if model.name not in held)


def _next_load(desired: values.Desired, held: Mapping[str, Held]) -> Iterator[Action]:
    if any(each.phase is Phase.LOADING for each in held.values()):
        return
    for model in desired.models:
        if _is(model, held, {Phase.FETCHED}) and _has_its_turn(model, desired, held):
            yield Load(model)
            return


def _has_its_turn(model: values.Model, desired: values.Desired, held: Mapping[str, Held]) -> bool:
    """In one of the bundles it is served with, all that come before it are settled."""
    earlier = desired.models[: desired.models.index(model)]
    bundles = [serving.models for serving in desired.servings if model.name in serving.models]
    if not bundles:
        named = {name for serving in desired.servings for name in serving.models}
        bundles = [tuple(each.name for each in earlier if each.name not in named)]
    return any(all(_is(each, held, _SETTLED) for each in earlier if each.name in bundle) for bundle in bundles)


def _is(model: values.Model, held: Mapping[str, Held], phases: Collection[Phase]) -> bool:
    found = held.get(model.name)
    return found is not None and found.key == model.key and found.phase in phases

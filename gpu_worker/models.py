"""What the registry knows of one model, and what a load call may ask. Belongs to one event loop; decides nothing."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping, Sequence

from gpu_worker import loader
from gpu_worker.engine import border, spec
from gpu_worker.repository import layout

MOST_CALLS = 32
UNLOADED = "unloaded"
"""The reason of a version that served."""

_DOWN = "the process of every instance has ended and is being restarted"
FILE = "file:"
"""How the parameters of a load call that bring files begin."""

Parameters = Mapping[str, border.Parameter | bytes]


class State(enum.Enum):
    """Where a model version stands, in the words of the repository index."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Model:
    """One model ever touched.

    `versions` serve, ascending; `states` tell about those and the ones that do not. `calls` are the loads and unloads
    that wait or run. An ensemble is `composing` other models; it is `stranded` while it should serve, but they do not let it:
    then `parameters` are those of the load to repeat. Nobody but an ensemble asked for a model that is not `explicit`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.calls = 0
        self.versions: dict[str, loader.Version] = {}
        self.highest: loader.Version | None = None
        self.states: dict[str, tuple[State, str]] = {}
        self.plan: loader.Plan | None = None
        self.temporary: layout.ModelDirectory | None = None
        self.composing: frozenset[str] = frozenset()
        self.stranded = False
        self.explicit = False
        self.parameters: Parameters = {}

    @property
    def specs(self) -> dict[str, spec.ModelSpec]:
        return {number: version.spec for number, version in self.versions.items()}

    @property
    def reason(self) -> str:
        return next((reason for _, reason in self.states.values()), "")

    @property
    def failed(self) -> bool:
        """Whether its last load did."""
        return any(state is State.UNAVAILABLE and reason != UNLOADED for state, reason in self.states.values())

    def serve(self, versions: dict[str, loader.Version]) -> None:
        self.versions = versions
        self.highest = next(reversed(versions.values()), None)

    def serving(self) -> loader.Serving | None:
        return loader.Serving(self.plan, self.versions) if self.plan and self.versions else None

    def current(self) -> dict[str, tuple[State, str]]:
        """The states, but that a version serves nothing while the processes of all its instances are down."""
        down = {number for number, version in self.versions.items() if not version.scheduler.available}
        return {
            number: (State.UNAVAILABLE, _DOWN) if state is State.READY and number in down else (state, reason)
            for number, (state, reason) in self.states.items()
        }

    def mark(self, versions: Sequence[str], state: State, reason: str = "") -> None:
        self.states = dict.fromkeys(versions, (state, reason))


def parsed(parameters: Parameters) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files among the parameters of a load call. Raises InferenceError INVALID_ARGUMENT."""
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        if key == "config" and isinstance(value, str):
            config = value
        elif key.startswith(FILE) and isinstance(value, bytes):
            files[key.removeprefix(FILE)] = value
        elif key == "config" or key.startswith(FILE):
            raise invalid(f"load parameter '{key}' must be {'a string' if key == 'config' else 'bytes'}")
        else:
            raise invalid(f"unexpected load parameter '{key}': known are 'config' and 'file:<path>'")
    if files and config is None:
        raise invalid("load parameter 'config' must be given when files are overridden")
    return config, files


def enter(model: Model) -> None:
    """Counts a call in; raises InferenceError UNAVAILABLE where very many wait for their turn already."""
    if model.calls >= MOST_CALLS:
        raise border.InferenceError(
            border.ErrorKind.UNAVAILABLE,
            f"related model '{model.name}' to a load/unload request is currently loading or unloading: try again later",
        )
    model.calls += 1


def invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)

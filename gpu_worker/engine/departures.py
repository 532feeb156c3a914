"""Which models' clients are to go elsewhere, and who wants to hear of each change.

Pure but for the listeners, which are called on the event loop. Bounded: of very many names only those that `serves`
knows are kept.
"""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[str, bool], None]
"""Called with a model (empty: all) and whether its clients are to go."""

_REMEMBERED = 4096


class Departures:
    """`serves` tells whether a model has versions that serve."""

    def __init__(self, serves: Callable[[str], bool]) -> None:
        self._serves = serves
        self._models: set[str] = set()
        self._listeners: list[Listener] = []
        self.all_leave = False

    def leave(self, model: str) -> None:
        """From now on clients of the model (empty: of all) are to go; a model that does not serve has none."""
        if not model:
            self.all_leave = True
            self._tell("", leaving=True)
        elif self._serves(model) and model not in self._models:
            self._models.add(model)
            self._tell(model, leaving=True)
            if len(self._models) > _REMEMBERED:
                self._forget()

    def stay(self, model: str) -> None:
        """The model was loaded: its clients may come again."""
        if model in self._models:
            self._models.discard(model)
            self._tell(model, leaving=False)

    def leaving(self, model: str) -> bool:
        return self.all_leave or model in self._models

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tells `listener` all that is so now, then each change; the result ends that."""
        self._listeners.append(listener)
        for model in [*self._models, *([""] if self.all_leave else [])]:
            listener(model, True)  # noqa: FBT003 - the listener's own words
        return lambda: self._listeners.remove(listener)

    def _forget(self) -> None:
        for model in [model for model in self._models if not self._serves(model)]:
            self.stay(model)

    def _tell(self, model: str, *, leaving: bool) -> None:
        for listener in tuple(self._listeners):
            listener(model, leaving)

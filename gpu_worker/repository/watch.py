"""What has changed in the repositories since it was last acted on.

Pure: looks come as values. A change counts once two looks in a row have seen the same, so that a model is not loaded
while it is being written; whoever writes for longer than the time between two looks should rename the whole into place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gpu_worker.repository import layout

Look = Mapping[str, layout.Fingerprint | None]
"""Each model's fingerprint; None where it could not be taken: twice in a row, that is a model that cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Findings:
    """What to load (also anew) and what to unload; `unsettled` asks for another look soon."""

    load: tuple[str, ...] = ()
    unload: tuple[str, ...] = ()
    unsettled: bool = False


class Watch:
    """Compares looks; `first` is what is loaded at the start."""

    def __init__(self, first: Look) -> None:
        self._acted: dict[str, layout.Fingerprint | None] = dict(first)
        self._last: Look = first

    def compare(self, seen: Look) -> Findings:
        """What is to be done now; it counts as done."""
        changed = {name for name, files in seen.items() if name not in self._acted or self._acted[name] != files}
        load = {name for name in changed if name in self._last and self._last[name] == seen[name]}
        gone = self._acted.keys() - seen.keys()
        unload = gone - self._last.keys()
        self._last = seen
        self._acted.update({name: seen[name] for name in load})
        for name in unload:
            del self._acted[name]
        return Findings(tuple(sorted(load)), tuple(sorted(unload)), unsettled=changed != load or gone != unload)

"""Makes single objects be as wanted: created where there is none, changed only while they are ours, and never twice.

Writes nothing where nothing differs. An object of the name that is not ours is left as it is: `NameTaken`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tms_server.backends.kubernetes import client, covers, kinds, names, view
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import errors

Json = dict[str, Any]
Shape = Callable[[Json | None], Json]
"""From what lives to what is wanted there."""
_TRIES = 4


class NameTaken(errors.AlreadyExists):
    """Somebody else's object has the name."""


class Objects:
    """Writes of one installation."""

    def __init__(self, options: options_module.Options, api: client.Api, seen: view.View) -> None:
        self._options = options
        self._api = api
        self._view = seen

    async def ensure(self, manifest: Json, live: Json | None) -> Json:
        """As `shape`, for a manifest that does not depend on what lives."""
        return await self.shape(lambda _: manifest, live, unseen=True)

    async def shape(self, wanted: Shape, live: Json | None, *, unseen: bool = False) -> Json:
        """The object as it is then. `live` is what is known of it; without `unseen` it must be the latest.

        NameTaken where it belongs to somebody else; Unavailable while one that is being deleted is not gone yet.
        """
        what = ""
        for _ in range(_TRIES):
            manifest = wanted(live)
            kind, name = kinds.of(manifest["kind"]), manifest["metadata"]["name"]
            what = f"{kind.kind} {name} in {self._api.namespace}"
            if live is not None:
                self._check(live, what)
                if covers.covers(manifest, live):
                    self._view.take(kind, live)
                    return live
            try:
                return await self._write(manifest, live, unseen=unseen)
            except errors.Conflict:
                live = await self._api.get(kind, name)
        raise errors.Conflict(f"{what} is changed by somebody else all the time")

    async def remove(self, kind: kinds.Kind, live: Json) -> None:
        """Deletes one of ours; what is gone is a success."""
        metadata = live["metadata"]
        if not metadata.get("deletionTimestamp"):
            await self._api.delete(kind, metadata["name"], metadata["uid"])

    async def label(self, pod: str, labels: dict[str, str | None]) -> None:
        """Sets and takes away labels of a pod; one that is gone is a success."""
        live = self._view.find(kinds.PODS, pod)
        if live is None:
            return
        patch = {"metadata": {"uid": live["metadata"]["uid"], "labels": labels}}
        try:
            self._view.take(kinds.PODS, await self._api.merge(kinds.PODS, pod, patch))
        except (errors.NotFound, errors.Conflict):
            return

    async def _write(self, manifest: Json, live: Json | None, *, unseen: bool) -> Json:
        if live is None:
            written = await self._api.create(manifest)
        else:
            written = await self._api.change(manifest, live, unseen=unseen)
        self._view.take(kinds.of(manifest["kind"]), written)
        return written

    def _check(self, live: Json, what: str) -> None:
        labels = live["metadata"].get("labels") or {}
        if not names.marks(self._options.installation_id).items() <= labels.items():
            raise NameTaken(f"{what} belongs to somebody else")
        if live["metadata"].get("deletionTimestamp"):
            raise errors.Unavailable(f"{what} is still being deleted")


async def all_of(*works: Any) -> list[BaseException]:
    """Runs them together to their ends; what they raised, in their order."""
    ends = await asyncio.gather(*works, return_exceptions=True)
    for each in ends:
        if isinstance(each, BaseException) and not isinstance(each, Exception):
            raise each
    return [each for each in ends if isinstance(each, Exception)]

"""Makes single objects be as wanted: created where there is none, changed only while they are ours, and never twice.

Writes nothing where nothing differs. An object of the name that is not ours is left as it is: `NameTaken`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tms_server.backends.kubernetes import client, covers, kinds, names, view
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import errors

Json = dict[str, Any]
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
        """The object as it is then. `live` is what is known of it.

        NameTaken where it belongs to somebody else; Unavailable while one that is being deleted is not gone yet.
        """
        kind = kinds.of(manifest["kind"])
        for _ in range(_TRIES):
            if live is not None and self._foreign(live):
                raise NameTaken(f"{kind.kind} {manifest['metadata']['name']} in {self._api.namespace} is not of TMS")
            if live is not None and live["metadata"].get("deletionTimestamp"):
                raise errors.Unavailable(f"{kind.kind} {manifest['metadata']['name']} is still being deleted")
            if live is not None and covers.covers(manifest, live):
                self._view.take(kind, live)
                return live
            try:
                return await self._write(manifest, live)
            except errors.Conflict:
                live = await self._api.get(kind, manifest["metadata"]["name"])
        raise errors.Conflict(f"{kind.kind} {manifest['metadata']['name']} is changed by somebody else all the time")

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

    async def _write(self, manifest: Json, live: Json | None) -> Json:
        if live is None:
            written = await self._api.create(manifest)
        else:
            written = await self._api.change(manifest, live["metadata"]["uid"])
        self._view.take(kinds.of(manifest["kind"]), written)
        return written

    def _foreign(self, live: Json) -> bool:
        labels = live["metadata"].get("labels") or {}
        ours = names.marks(self._options.installation_id)
        return any(labels.get(key) != value for key, value in ours.items())


async def all_of(*works: Any) -> list[BaseException]:
    """Runs them together to their ends; what they raised, in their order."""
    ends = await asyncio.gather(*works, return_exceptions=True)
    for each in ends:
        if isinstance(each, BaseException) and not isinstance(each, Exception):
            raise each
    return [each for each in ends if isinstance(each, Exception)]

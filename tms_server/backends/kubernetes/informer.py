"""What is known of one kind of objects, kept up to date by a watch. Lists once; then only listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from tms_server import clock as clock_module
from tms_server.backends.kubernetes import backoff, client, kinds
from tms_server.model import errors

log = structlog.get_logger(__name__)
Json = dict[str, Any]
_WATCH_S = 540
"""A watch is begun anew after so long at most, and half of it at least."""


class Informer:
    """Objects by name. `changed` is called with each object that was added, changed or removed."""

    def __init__(
        self, api: client.Api, kind: kinds.Kind, query: Mapping[str, str], changed: Callable[[Json], None]
    ) -> None:
        self.kind = kind
        self.objects: dict[str, Json] = {}
        self.synced = asyncio.Event()
        self.failure: errors.TmsError | None = None
        """Why nothing is heard now."""
        self._api = api
        self._query = query
        self._changed = changed
        self._heard = 0

    def take(self, found: Json) -> None:
        """Enters what a write has answered, before the watch tells of it; what the watch has passed already is old."""
        if _revision(found) > self._heard:
            self._put(found)

    async def run(self, clock: clock_module.Clock) -> None:
        """Listens for ever."""
        pauses = backoff.Backoff()
        revision: str | None = None
        while True:
            try:
                if revision is None:
                    revision = await self._list()
                    self._hears(None)
                    self.synced.set()
                revision = await self._listen(revision, pauses)
            except errors.RevisionGone:
                revision = None
            except errors.TmsError as failure:
                self._hears(failure)
                revision = self._resume()
            except Exception as failure:
                # Whoever looks at what is known must never be left with the past for good.
                log.exception("kubernetes.odd_answer", kind=self.kind.plural)
                self._hears(errors.Unavailable(f"{self.kind.plural}: the API server's answer is odd: {failure!r}"))
                revision = None
            await clock.sleep_until(clock.now() + pauses.pause())

    def _resume(self) -> str | None:
        return str(self._heard) if self.synced.is_set() else None

    async def _list(self) -> str:
        found, revision = await self._api.list(self.kind, self._query)
        self._heard = max(self._heard, int(revision))
        present = {each["metadata"]["name"] for each in found}
        for name in [name for name in self.objects if name not in present]:
            self._remove(name)
        for each in found:
            self._put(each)
        return revision

    async def _listen(self, revision: str, pauses: backoff.Backoff) -> str:
        bound_s = int(_WATCH_S * backoff.spread())
        async for event in self._api.watch(self.kind, self._query, revision, bound_s):
            self._hears(None)
            pauses.reset()
            found = event["object"]
            revision = found["metadata"]["resourceVersion"]
            self._heard = int(revision)
            if event["type"] == "DELETED":
                self._remove(found["metadata"]["name"])
            elif event["type"] != "BOOKMARK":
                self._put(found)
        return revision

    def _put(self, found: Json) -> None:
        name = found["metadata"]["name"]
        known = self.objects.get(name)
        if known is None or _revision(known) < _revision(found):
            if self.kind is not kinds.DEPLOYMENTS:
                found["metadata"].pop("managedFields", None)
            self.objects[name] = found
            self._changed(found)

    def _remove(self, name: str) -> None:
        known = self.objects.pop(name, None)
        if known is not None:
            self._changed(known)

    def _hears(self, failure: errors.TmsError | None) -> None:
        if (failure is None) != (self.failure is None):
            if failure is None:
                log.info("kubernetes.heard_again", kind=self.kind.plural)
            else:
                log.warning("kubernetes.not_heard", kind=self.kind.plural, why=str(failure))
        self.failure = failure


def _revision(found: Json) -> int:
    return int(found["metadata"]["resourceVersion"])

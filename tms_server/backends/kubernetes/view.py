"""All that is known of the installation's part of the cluster, from watches; asking it costs no request.

It never decides anything: it holds what the API server said last.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tms_server import clock as clock_module
from tms_server.backends.kubernetes import client, endpoints, informer, kinds, names
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import errors

Json = dict[str, Any]
_OF_GROUPS = (kinds.DEPLOYMENTS, kinds.REPLICASETS, kinds.PODS, kinds.SECRETS, kinds.SCALERS)
_MOST_EVENTS = 8
"""Warnings kept of one object."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """What exists of one group. `warnings`: events of its objects, by name of the object, latest last."""

    deployment: Json | None
    secret: Json | None
    scaler: Json | None
    replicasets: tuple[Json, ...]
    pods: tuple[Json, ...]
    warnings: Mapping[str, tuple[Json, ...]]

    @property
    def exists(self) -> bool:
        return any((self.deployment, self.secret, self.scaler, self.pods))


class View:
    """Made with `open`. `changed` is called at every change that somebody could want to know of."""

    def __init__(
        self,
        options: options_module.Options,
        api: client.Api,
        reached: endpoints.Endpoints,
        changed: Callable[[], None],
    ) -> None:
        self.reached = reached
        self.nodes_readable = False
        self._options = options
        self._api = api
        self._changed = changed
        self._tasks: list[asyncio.Task[None]] = []
        self._members: dict[kinds.Kind, dict[str, set[str]]] = {
            kind: collections.defaultdict(set) for kind in _OF_GROUPS
        }
        self._warnings: dict[str, dict[str, Json]] = {}
        self._versions: dict[str, int] = {}
        self._serial = itertools.count(1)
        self._informers = {kind: self._informer(kind) for kind in kinds.ALL if kind is not kinds.LOGS}

    async def open(self, clock: clock_module.Clock, *, nodes: bool) -> None:
        """Returns once everything was listed; Unavailable, with the last failure, when that takes too long."""
        self.nodes_readable = nodes
        watched = [each for kind, each in self._informers.items() if nodes or kind is not kinds.NODES]
        self._tasks = [asyncio.create_task(each.run(clock), name=f"watches {each.kind.plural}") for each in watched]
        try:
            async with asyncio.timeout(self._options.sync_bound_s):
                await asyncio.gather(*(each.synced.wait() for each in watched))
        except TimeoutError:
            why = next((each.failure for each in watched if each.failure is not None), None)
            raise errors.Unavailable(f"the cluster could not be listed: {why or 'no answer in time'}") from None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def find(self, kind: kinds.Kind, name: str) -> Json | None:
        """The object of ours, if there is one."""
        return self._informers[kind].objects.get(name)

    def all(self, kind: kinds.Kind) -> Mapping[str, Json]:
        """All objects of ours of a kind, by name."""
        return self._informers[kind].objects

    def take(self, kind: kinds.Kind, found: Json) -> None:
        """Enters what a write has answered."""
        self._informers[kind].take(found)

    def groups(self) -> list[str]:
        """Ids of all groups of which something exists that must be run or removed."""
        kept = (kinds.DEPLOYMENTS, kinds.PODS, kinds.SECRETS, kinds.SCALERS)
        return sorted({group for kind in kept for group, members in self._members[kind].items() if members})

    def group(self, group_id: str) -> GroupView:
        """What exists of a group; all empty for an unknown one."""
        pods = tuple(self._of(kinds.PODS, group_id))
        replicasets = tuple(self._of(kinds.REPLICASETS, group_id))
        involved = [group_id, *(each["metadata"]["name"] for each in (*pods, *replicasets))]
        warnings = {name: tuple(self._warnings[name].values()) for name in involved if name in self._warnings}
        return GroupView(
            deployment=next(self._of(kinds.DEPLOYMENTS, group_id), None),
            secret=next(self._of(kinds.SECRETS, group_id), None),
            scaler=next(self._of(kinds.SCALERS, group_id), None),
            replicasets=replicasets,
            pods=pods,
            warnings=warnings,
        )

    def version(self, group_id: str) -> int:
        """Rises whenever something of the group changes; never the same for another group of the same id."""
        return self._versions.get(group_id, 0)

    def _of(self, kind: kinds.Kind, group_id: str) -> Iterator[Json]:
        objects = self._informers[kind].objects
        return (objects[name] for name in sorted(self._members[kind].get(group_id, ())))

    def _informer(self, kind: kinds.Kind) -> informer.Informer:
        ours = {"labelSelector": f"{names.INSTALLATION}={self._options.installation_id}"}
        if kind is kinds.EVENTS:
            return informer.Informer(self._api, kind, {"fieldSelector": "type=Warning"}, self._saw_event)
        if kind is kinds.SLICES:
            return informer.Informer(self._api, kind, ours, self._saw_slice)
        if kind is kinds.NODES:
            return informer.Informer(self._api, kind, {}, self._saw_node)
        return informer.Informer(self._api, kind, ours, lambda found: self._saw(kind, found))

    def _saw(self, kind: kinds.Kind, found: Json) -> None:
        name = found["metadata"]["name"]
        group_id = (found["metadata"].get("labels") or {}).get(names.GROUP)
        if kind in self._members and group_id:
            members = self._members[kind][group_id]
            if name in self._informers[kind].objects:
                members.add(name)
            else:
                members.discard(name)
                if kind in (kinds.PODS, kinds.REPLICASETS):
                    self._warnings.pop(name, None)
            self._versions[group_id] = next(self._serial)
            self._forget_empty(kind, group_id)
        self._changed()

    def _forget_empty(self, kind: kinds.Kind, group_id: str) -> None:
        if not self._members[kind][group_id]:
            del self._members[kind][group_id]
        if not any(group_id in members for members in self._members.values()):
            self._warnings.pop(group_id, None)
            self._versions.pop(group_id, None)

    def _saw_event(self, event: Json) -> None:
        involved = event.get("involvedObject") or {}
        about, name = str(involved.get("name") or ""), event["metadata"]["name"]
        if name not in self._informers[kinds.EVENTS].objects:
            kept = self._warnings.get(about, {})
            kept.pop(name, None)
            if not kept:
                self._warnings.pop(about, None)
            return
        kept = self._warnings.setdefault(about, {})
        kept.pop(name, None)
        kept[name] = event
        if len(kept) > _MOST_EVENTS:
            del kept[next(iter(kept))]
        if (group_id := self._group_of(about)) is not None:
            self._versions[group_id] = next(self._serial)
            self._changed()

    def _group_of(self, name: str) -> str | None:
        if name in self._members[kinds.DEPLOYMENTS]:
            return name
        for kind in (kinds.PODS, kinds.REPLICASETS):
            if (found := self._informers[kind].objects.get(name)) is not None:
                labels: Mapping[str, str] = found["metadata"].get("labels") or {}
                return labels.get(names.GROUP)
        return None

    def _saw_slice(self, found: Json) -> None:
        present = found["metadata"]["name"] in self._informers[kinds.SLICES].objects
        self.reached.saw(found, present=present)
        self._changed()

    def _saw_node(self, node: Json) -> None:
        """Whether a pod that leaves is still somewhere depends on its node."""
        name = node["metadata"]["name"]
        for pod in self._informers[kinds.PODS].objects.values():
            if pod["spec"].get("nodeName") == name and pod["metadata"].get("deletionTimestamp"):
                group_id = (pod["metadata"].get("labels") or {}).get(names.GROUP, "")
                self._versions[group_id] = next(self._serial)
        self._changed()

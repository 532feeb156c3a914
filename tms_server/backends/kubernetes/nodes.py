"""What the cluster's nodes mean for workers: which shapes can run, and moving pods off a cordoned node before anybody evicts.

Works only where nodes may be read. Moving is a rollout: the new pod serves before the old one goes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import structlog

from tms_server import clock as clock_module
from tms_server.backends.kubernetes import client, kinds, names, objects, pod, quantities, view
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import errors, resources
from tms_server.ports import backend

log = structlog.get_logger(__name__)
Json = dict[str, Any]
MOVER = "tms-nodes"
"""Field manager of the mark that restarts a rollout, so that applying the rest never takes it away."""


def misfit(
    worker: resources.WorkerSpec, options: options_module.Options, nodes: Iterable[Json]
) -> backend.Trouble | None:
    """Why no node of now could run such a worker; None if one could."""
    profile = pod.profile_of(options, worker)
    selected = [each for each in nodes if profile.node_selector.items() <= _labels(each).items()]
    if not selected:
        chosen = ", ".join(f"{key}={value}" for key, value in profile.node_selector.items()) or "no selector"
        return backend.Trouble("NoSuchNode", f"profile {_name(worker)}: no node matches {chosen}")
    gpus = worker.resources.gpus
    if gpus and not any(_offers(each, profile.gpu_resource) >= gpus for each in selected):
        said = f"profile {_name(worker)}: no node that it selects offers {gpus} {profile.gpu_resource}"
        return backend.Trouble("NoSuchNode", said)
    return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Groups to be moved, with the mark that says from where, and pods whose time is over."""

    restart: Mapping[str, str]
    delete: tuple[Json, ...]
    next_at: dt.datetime | None


def plan(seen: view.View, options: options_module.Options, now: dt.datetime) -> Move:
    """What cordoned nodes ask for now."""
    bound = dt.timedelta(seconds=options.drain_timeout_s)
    restart: dict[str, set[str]] = {}
    delete: list[Json] = []
    due: list[dt.datetime] = []
    for node in _cordoned(seen):
        since = _since(node)
        if since is None:
            continue
        for each in _pods_on(node, seen):
            group_id = _labels(each).get(names.GROUP)
            if group_id is not None and seen.find(kinds.DEPLOYMENTS, group_id) is not None:
                restart.setdefault(group_id, set()).add(f"{node['metadata']['name']}@{since.isoformat()}")
            if since + bound <= now:
                delete.append(each)
            else:
                due.append(since + bound)
    marks = {group_id: marks for group_id, marks in restart.items() if not marks <= _marks(seen, group_id)}
    return Move(
        restart={group_id: " ".join(sorted(each)) for group_id, each in marks.items()},
        delete=tuple(delete),
        next_at=min(due, default=None),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """Carries moves out."""

    options: options_module.Options
    api: client.Api
    view: view.View
    writes: objects.Objects
    clock: clock_module.Clock

    async def __call__(self) -> dt.datetime | None:
        """One pass; answers when the next is due by itself. Unavailable, PermissionDenied."""
        if not self.view.nodes_readable:
            return None
        wanted = plan(self.view, self.options, self.clock.now())
        for group_id, mark in wanted.restart.items():
            await self._restart(group_id, mark)
        for each in wanted.delete:
            log.warning("pod.deleted", pod=each["metadata"]["name"], why="its node is cordoned and nothing replaced it")
            await self.writes.remove(kinds.PODS, each)
        return wanted.next_at

    async def _restart(self, group_id: str, mark: str) -> None:
        patch = {"spec": {"template": {"metadata": {"annotations": {names.MOVED_AT: mark}}}}}
        try:
            self.view.take(kinds.DEPLOYMENTS, await self.api.merge(kinds.DEPLOYMENTS, group_id, patch, MOVER))
        except errors.NotFound:
            return
        log.info("group.moved", group=group_id, off=mark)


def _cordoned(seen: view.View) -> Iterator[Json]:
    return (each for each in seen.all(kinds.NODES).values() if (each.get("spec") or {}).get("unschedulable"))


def _since(node: Json) -> dt.datetime | None:
    """When it was cordoned, as the cluster says a moment later; so that a server that starts anew counts on."""
    for taint in node["spec"].get("taints") or []:
        if taint["key"] == "node.kubernetes.io/unschedulable" and taint.get("timeAdded"):
            return dt.datetime.fromisoformat(taint["timeAdded"])
    return None


def _pods_on(node: Json, seen: view.View) -> Iterator[Json]:
    name = node["metadata"]["name"]
    return (
        each
        for each in seen.all(kinds.PODS).values()
        if each["spec"].get("nodeName") == name and not each["metadata"].get("deletionTimestamp")
    )


def _marks(seen: view.View, group_id: str) -> set[str]:
    deployment = seen.find(kinds.DEPLOYMENTS, group_id) or {}
    template = (deployment.get("spec") or {}).get("template") or {}
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    return set((annotations.get(names.MOVED_AT) or "").split())


def _labels(found: Json) -> Mapping[str, str]:
    return found["metadata"].get("labels") or {}


def _offers(node: Json, resource: str) -> int:
    amount = quantities.parse(str(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0")))
    return int(amount or 0)


def _name(worker: resources.WorkerSpec) -> str:
    return worker.profile or options_module.DEFAULT_PROFILE

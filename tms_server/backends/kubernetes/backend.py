"""Worker groups as Deployments of a Kubernetes cluster, and Services that lead clients to them.

Decides when objects are written; what they hold is said by `manifests`, what is known by `view`. Keeps nothing that the
cluster does not hold, so a server that starts anew goes on where the last one stopped. Never touches what is not marked
with its installation.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import weakref
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

import structlog

from tms_server import clock as clock_module
from tms_server.backends import changes
from tms_server.backends.kubernetes import (
    client,
    connect,
    covers,
    endpoints,
    failures,
    kinds,
    logs,
    manifests,
    names,
    nodes,
    objects,
    observed,
    pod,
    reasons,
    refusals,
    rights,
    router,
    view,
)
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import errors, ids, resources
from tms_server.ports import backend

log = structlog.get_logger(__name__)
Json = dict[str, Any]
Key = tuple[tuple[object, ...], str, str, bool]
_TRY_AGAIN = dt.timedelta(seconds=30)
_STOP_BOUND_S = 60
"""Beside its grace period, how long a pod may take to go before the caller is told."""


class KubernetesBackend:
    """Made with `open`; any number of them may serve one installation."""

    def __init__(self, options: options_module.Options, api: client.Api, clock: clock_module.Clock) -> None:
        self.api = api
        self._options = options
        self._clock = clock
        self._changes = changes.Changes()
        reached = endpoints.Endpoints(clock, dt.timedelta(seconds=options.settle_s), self._wake_at)
        self._view = view.View(options, api, reached, self._changes.notify)
        self._objects = objects.Objects(options, api, self._view)
        self._router = router.Router(options, self._view, self._objects, clock, self._wake_at)
        self._mover = nodes.Mover(options=options, api=api, view=self._view, writes=self._objects, clock=clock)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._differs: dict[ids.GroupId, tuple[Key, backend.LaunchSpec, bool]] = {}
        self._observed: dict[str, tuple[int, backend.Observed | None]] = {}
        self._moves_at: dt.datetime | None = None

    @classmethod
    async def open(
        cls, options: options_module.Options, connection: connect.Connection, clock: clock_module.Clock
    ) -> KubernetesBackend:
        """Checks the rights and looks at the cluster once.

        PermissionDenied with the rights that are missing, FailedPrecondition without credentials, Unavailable.
        """
        api = client.Api(
            await connect.connect(connection),
            options.namespace,
            clock,
            at_once=options.requests_at_once,
            writes_per_s=options.writes_per_s,
        )
        opened = cls(options, api, clock)
        _warn_of_short_graces(options)
        try:
            await rights.check(api)
            await opened._view.open(clock, nodes=await _reads_nodes(options, api))
        except BaseException:
            await opened.close()
            raise
        log.info(
            "kubernetes.opened",
            namespace=options.namespace,
            installation=options.installation_id,
            nodes=opened._view.nodes_readable,
        )
        return opened

    @property
    def routes(self) -> bool:
        return True

    @property
    def scales(self) -> bool:
        return True

    def refuse(self, worker: resources.WorkerSpec) -> str | None:
        if reason := refusals.refuse(self._options, worker):
            return reason
        against = self.warn(worker) if self._options.strict else None
        return f"profile: {against.message}" if against is not None else None

    def capacity_bytes(self, worker: resources.WorkerSpec) -> int:
        if worker.profile and worker.profile not in self._options.profiles:
            return 0
        return max(0, pod.models_bytes(self._options, worker) - self._options.margin_bytes)

    def refuse_name(self, namespace: ids.Namespace, name: ids.LeaseName) -> str | None:
        return names.refuse(namespace, name)

    def warn(self, worker: resources.WorkerSpec) -> backend.Trouble | None:
        if not self._view.nodes_readable or refusals.refuse(self._options, worker):
            return None
        return nodes.misfit(worker, self._options, self._view.all(kinds.NODES).values())

    def differs(self, spec: backend.LaunchSpec) -> bool:
        group = self._view.group(spec.group_id)
        key = (_identity(group.deployment), _revision(group.secret), _revision(group.scaler), group.exists)
        known = self._differs.get(spec.group_id)
        if known is None or known[0] != key or known[1] != spec:
            known = (key, spec, self._compare(spec, group))
            self._differs[spec.group_id] = known
        return known[2]

    async def route(self, routes: Sequence[backend.Route]) -> Mapping[str, backend.Trouble]:
        return await self._router.route(routes)

    def routed(self, worker: ids.WorkerId) -> frozenset[ids.LeaseId]:
        return self._router.routed(worker)

    async def observe(self) -> tuple[backend.Observed, ...]:
        """From memory, the state of the last word of the API server."""
        self._observed = {each: self._observe(each) for each in self._view.groups()}
        self._differs = {each: known for each, known in self._differs.items() if each in self._observed}
        return tuple(found for _, found in self._observed.values() if found is not None)

    async def launch(self, spec: backend.LaunchSpec) -> None:
        """Beside the port: AlreadyExists where somebody else has the name."""
        if reason := self.refuse(spec.worker):
            raise errors.FailedPrecondition(reason)
        wanted = manifests.of_group(spec, self._options)
        async with self._lock(spec.group_id):
            await self._hold_evictions()
            group = self._view.group(spec.group_id)
            await self._objects.ensure(wanted.secret, group.secret)
            await self._apply_deployment(spec, wanted.deployment, group.deployment)
            if wanted.scaler is not None:
                await self._objects.ensure(wanted.scaler, group.scaler)
            elif group.scaler is not None:
                await self._objects.remove(kinds.SCALERS, group.scaler)

    async def retire(self, group_id: ids.GroupId) -> None:
        """Beside the port: a pod of a node that is gone counts as stopped. Unavailable when pods do not go."""
        async with self._lock(group_id):
            steps = self._changes.watch()
            await self._remove(self._view.group(group_id))
            try:
                async with asyncio.timeout(self._stop_bound_s(group_id)):
                    while self._exists(self._view.group(group_id)):
                        if await anext(steps, "closed") == "closed":
                            raise errors.Unavailable("the backend is closed")
            except TimeoutError:
                raise errors.Unavailable(f"group {group_id}: its pods are still stopping") from None
        await self._release_evictions()

    async def tend(self) -> None:
        """Moves pods off cordoned nodes."""
        try:
            due = await self._mover()
        except (errors.PermissionDenied, failures.Refused) as failure:
            log.warning("pods.not_moved", why=str(failure))
            due = self._clock.now() + _TRY_AGAIN
        if due is not None and due != self._moves_at:
            self._moves_at = due
            self._wake_at(due)

    def publish(self, owner: str, taken: Collection[resources.Endpoint]) -> resources.Endpoint:
        """The Service's name in the cluster; derived, so never taken by another owner."""
        del taken
        host = f"{names.service_of(owner)}.{self._options.namespace}.svc"
        return resources.Endpoint(host, names.HTTP_PORT, names.GRPC_PORT, names.METRICS_PORT)

    async def logs(self, group_id: ids.GroupId, tail: int, *, follow: bool) -> AsyncIterator[backend.LogLine]:
        if not self._view.group(group_id).exists:
            raise errors.NotFound(f"group {group_id} does not run here")
        reader = logs.Reader(self.api, self._view, group_id)
        lines = reader.follow(tail, self._changes) if follow else reader.tail(tail)
        try:
            async for line in lines:
                yield line
        finally:
            await lines.aclose()

    def watch(self) -> AsyncIterator[None]:
        return self._changes.watch()

    async def close(self) -> None:
        self._changes.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._view.close()
        await self.api.close()

    def _observe(self, group_id: str) -> tuple[int, backend.Observed | None]:
        """With the version that it holds for; None for a group of which nothing is left that counts."""
        version, known = self._view.version(group_id), self._observed.get(group_id)
        if known is not None and known[0] == version:
            return known
        group = self._view.group(group_id)
        return version, observed.of_group(ids.GroupId(group_id), group) if self._exists(group) else None

    def _exists(self, group: view.GroupView) -> bool:
        """Whether anything of it is left that runs or would run again."""
        if group.deployment is not None or group.secret is not None or group.scaler is not None:
            return True
        all_nodes = self._view.all(kinds.NODES)
        return any(not reasons.lost(each, all_nodes.get(each["spec"].get("nodeName") or "")) for each in group.pods)

    def _compare(self, spec: backend.LaunchSpec, group: view.GroupView) -> bool:
        if not group.exists or refusals.refuse(self._options, spec.worker):
            return False
        wanted = manifests.of_group(spec, self._options)
        pairs = ((wanted.secret, group.secret), (wanted.deployment, group.deployment), (wanted.scaler, group.scaler))
        return _is_stopped(group.deployment) or any(_differs(manifest, live) for manifest, live in pairs)

    async def _apply_deployment(self, spec: backend.LaunchSpec, manifest: Json, live: Json | None) -> None:
        if spec.scaling is None:
            await self._objects.ensure(manifest, live)
            return
        # The autoscaler may have spoken a moment ago, and must not be overruled.
        await self._objects.shape(lambda known: _scaled(spec, manifest, known), live)

    async def _remove(self, group: view.GroupView) -> None:
        owned = ((kinds.DEPLOYMENTS, group.deployment), (kinds.SCALERS, group.scaler), (kinds.SECRETS, group.secret))
        found = [(kind, live) for kind, live in owned if live is not None]
        # Left behind where somebody deleted a Deployment without what it owns.
        found += [
            (kinds.REPLICASETS, each) for each in group.replicasets if not each["metadata"].get("ownerReferences")
        ]
        if failed := await objects.all_of(*(self._objects.remove(kind, live) for kind, live in found)):
            raise failed[0]

    def _stop_bound_s(self, group_id: ids.GroupId) -> int:
        graces = (each["spec"].get("terminationGracePeriodSeconds") or 0 for each in self._view.group(group_id).pods)
        return max(graces, default=0) + _STOP_BOUND_S

    async def _hold_evictions(self) -> None:
        """Only where pods can be moved instead: a budget must not block a drain for ever."""
        if not self._view.nodes_readable:
            return
        manifest = manifests.of_budget(self._options)
        live = self._view.find(kinds.BUDGETS, manifest["metadata"]["name"])
        if _differs(manifest, live):
            async with self._lock("budget"):
                live = self._view.find(kinds.BUDGETS, manifest["metadata"]["name"])
                await self._objects.ensure(manifest, live)

    async def _release_evictions(self) -> None:
        async with self._lock("budget"):
            live = self._view.find(kinds.BUDGETS, manifests.budget_name(self._options))
            if live is not None and not self._view.groups():
                await self._objects.remove(kinds.BUDGETS, live)

    def _wake_at(self, instant: dt.datetime) -> None:
        self._spawn(self._wake(instant), "wakes")

    async def _wake(self, instant: dt.datetime) -> None:
        await self._clock.sleep_until(instant)
        self._changes.notify()

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lock(self, name: str) -> asyncio.Lock:
        """Serialises what happens to one group; kept only while somebody holds it or waits for it."""
        return self._locks.setdefault(name, asyncio.Lock())


def _warn_of_short_graces(options: options_module.Options) -> None:
    least_s = pod.least_grace_s(options)
    for name, profile in options.profiles.items():
        if profile.termination_grace_s < least_s:
            log.warning(
                "kubernetes.grace_is_short",
                profile=name,
                termination_grace_s=profile.termination_grace_s,
                remedy=f"give it {least_s} or shorten connection_age_s: else pods that stop may cut requests off",
            )


async def _reads_nodes(options: options_module.Options, api: client.Api) -> bool:
    """PermissionDenied where it must and may not: what was to be refused would be let in."""
    if not options.watch_nodes:
        return False
    allowed = await rights.may_read_nodes(api)
    if options.strict and not allowed:
        raise errors.PermissionDenied(
            "kubernetes.strict: this account may not list and watch nodes; grant it (rbac.nodes of the chart), or do"
            " without strict"
        )
    if not allowed:
        log.warning("nodes.not_read", why="this account may not list and watch nodes; cordoned ones are not noticed")
    return allowed


def _differs(manifest: Json | None, live: Json | None) -> bool:
    if manifest is None or live is None:
        return manifest is not live
    return bool(live["metadata"].get("deletionTimestamp")) or not covers.covers(manifest, live)


def _identity(deployment: Json | None) -> tuple[object, ...]:
    """Changes with all of a Deployment that could differ, and not with its status."""
    if deployment is None:
        return ()
    metadata = deployment["metadata"]
    applied = (metadata.get("annotations") or {}).get(names.APPLIED)
    return metadata["uid"], metadata.get("generation"), applied, metadata.get("deletionTimestamp")


def _revision(found: Json | None) -> str:
    return found["metadata"]["resourceVersion"] if found is not None else ""


def _scaled(spec: backend.LaunchSpec, manifest: Json, live: Json | None) -> Json:
    """The autoscaler owns the replicas from its first word on; until then they are ours, and dropping them means one.

    At none it rests until somebody else asks for one.
    """
    if (live is None or _is_stopped(live)) and spec.scaling is not None:
        bounds = spec.scaling.autoscaling
        return manifests.with_replicas(manifest, min(max(spec.replicas, bounds.min_replicas), bounds.max_replicas))
    if live is not None and _owns_replicas(live):
        return manifests.with_replicas(manifest, live["spec"]["replicas"])
    return manifest


def _is_stopped(live: Json | None) -> bool:
    """Whether somebody has scaled it to none, which nothing here ever wants."""
    return live is not None and (live.get("spec") or {}).get("replicas") == 0


def _owns_replicas(live: Json) -> bool:
    return any(
        each.get("manager") == names.MANAGER
        and each.get("operation") == "Apply"
        and "f:replicas" in ((each.get("fieldsV1") or {}).get("f:spec") or {})
        for each in live["metadata"].get("managedFields") or []
    )

"""A small Kubernetes API over HTTP for fast unit tests: storing, watching, applying, and pods that run at once.

It copies what was seen of a real API server; the contract suite that runs on it runs on a real one too.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import hashlib
import json
import pathlib
import re
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace, name."""

KINDS = {
    "pods": "Pod",
    "services": "Service",
    "secrets": "Secret",
    "events": "Event",
    "endpointslices": "EndpointSlice",
    "nodes": "Node",
    "deployments": "Deployment",
    "replicasets": "ReplicaSet",
    "horizontalpodautoscalers": "HorizontalPodAutoscaler",
    "poddisruptionbudgets": "PodDisruptionBudget",
}
_PATH = re.compile(
    r"/apis?/(?:[a-z.0-9]+/)?v\d(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?P<sub>/log)?"
)
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
MANAGER = "fieldManager"


class Refusal(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


@dataclasses.dataclass(frozen=True)
class Happened:
    revision: int
    type: str
    plural: str
    found: Json


class Cluster:
    """What is stored, and what runs. Tests turn its knobs and look at it as the API would."""

    def __init__(self) -> None:
        self.objects: dict[Key, Json] = {}
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request but watches that began."""
        self.denied: set[tuple[str, str]] = set()
        """Verb and resource that nobody may."""
        self.refusals: dict[str, Refusal] = {}
        """Kinds (plural) that are not let in when created."""
        self.logs: dict[tuple[str, str], list[str]] = {}
        self.hold_pods: Json | None = None
        """Status of new pods, instead of running ones."""
        self.hold_slices = False
        self.down = False
        self.last_words = ""
        """What a watch says when the API server goes away in the middle of it."""
        self._revision = 100
        self._history: list[Happened] = []
        self._oldest = 100
        self._changed = asyncio.Event()
        self._applied: dict[tuple[Key, str], Json] = {}
        self._serial = 0
        self._run_of_server = 0

    # What happens to objects.

    def put(self, plural: str, found: Json) -> Json:
        """Stores an object as it is, new or not."""
        key = (plural, found["metadata"].get("namespace", ""), found["metadata"]["name"])
        known = self.objects.get(key)
        self._revision += 1
        metadata = {"uid": str(uuid.uuid4()), "creationTimestamp": "2026-01-01T00:00:00Z", **found["metadata"]}  # noqa: TID251 - the API server makes such ids
        if known is not None:
            metadata["uid"] = known["metadata"]["uid"]
        metadata["resourceVersion"] = str(self._revision)
        before = known["metadata"].get("generation", 0) if known is not None else 0
        metadata["generation"] = before + (known is None or known.get("spec") != found.get("spec"))
        stored = {**found, "metadata": metadata}
        self.objects[key] = stored
        self._tell("MODIFIED" if known is not None else "ADDED", plural, stored)
        if plural == "deployments":
            self._run(stored)
        if plural in ("pods", "services"):
            self._lead()
        return stored

    def remove(self, key: Key) -> None:
        """Deletes an object and what it owns."""
        found = self.objects.pop(key, None)
        if found is None:
            return
        self._applied = {each: value for each, value in self._applied.items() if each[0] != key}
        self._revision += 1
        gone = copy.deepcopy(found)
        gone["metadata"]["resourceVersion"] = str(self._revision)
        self._tell("DELETED", key[0], gone)
        for other, each in list(self.objects.items()):
            owners = each["metadata"].get("ownerReferences") or []
            if any(owner["uid"] == found["metadata"]["uid"] for owner in owners):
                self.remove(other)
        if key[0] == "pods":
            self._lead()

    def names(self, plural: str) -> list[str]:
        return sorted(key[2] for key in self.objects if key[0] == plural)

    def find(self, plural: str, name: str) -> Json:
        return next(each for key, each in self.objects.items() if (key[0], key[2]) == (plural, name))

    def edit(self, plural: str, name: str, change: Callable[[Json], object]) -> None:
        """Somebody edits by hand."""
        found = copy.deepcopy(self.find(plural, name))
        change(found)
        self.put(plural, found)

    def kill_worker(self, deployment: str) -> None:
        """The worker's container of each pod dies and is started anew."""
        for name in self.names("pods"):
            if name.startswith(f"{deployment}-"):
                self.edit("pods", name, _restart_worker)
                self.say(name, "worker", "started")

    def compact(self) -> None:
        """Forgets history: watches from before are told 410."""
        self._revision += 1
        self._oldest = self._revision
        self._history.clear()

    def say(self, pod: str, container: str, line: str) -> None:
        self.logs.setdefault((pod, container), []).append(line)
        self._wake()

    def writes(self) -> list[tuple[str, str]]:
        return [each for each in self.requests if each[0] in ("PATCH", "DELETE", "PUT")]

    # What the API does.

    def apply(self, key: Key, manifest: Json, manager: str) -> tuple[Json, bool]:
        known = self.objects.get(key)
        metadata = manifest["metadata"]
        if "uid" in metadata and known is None:
            raise Refusal(
                409, "Conflict", "uid mismatch: the provided object specified uid, and no existing object was found"
            )
        if "uid" in metadata and known is not None and known["metadata"]["uid"] != metadata["uid"]:
            raise Refusal(422, "Invalid", "metadata.uid: Invalid value: field is immutable")
        wanted_revision = metadata.get("resourceVersion")
        if known is not None and wanted_revision not in (None, known["metadata"]["resourceVersion"]):
            raise Refusal(409, "Conflict", "the object has been modified")
        if known is None and key[0] in self.refusals:
            raise self.refusals[key[0]]
        if not _NAME.fullmatch(key[2]) or len(key[2]) > 63:
            raise Refusal(422, "Invalid", f"metadata.name: Invalid value: {key[2]!r}")
        applied = {**manifest, "metadata": {k: v for k, v in metadata.items() if k not in ("uid", "resourceVersion")}}
        pruned = _without(known or {}, self._applied.get((key, manager), {}), applied)
        merged = _merged(pruned, applied)
        if known is not None and key[0] == "deployments" and merged["spec"]["selector"] != known["spec"]["selector"]:
            raise Refusal(422, "Invalid", "spec.selector: Invalid value: field is immutable")
        self._applied[(key, manager)] = applied
        merged["metadata"]["managedFields"] = [_managed(applied, manager)]
        return self._store(key[0], known, merged), known is None

    def merge(self, key: Key, patch: Json) -> Json:
        known = self.objects.get(key)
        if known is None:
            raise Refusal(404, "NotFound", f"{key[0]} {key[2]!r} not found")
        uid = (patch.get("metadata") or {}).get("uid")
        if uid not in (None, known["metadata"]["uid"]):
            raise Refusal(409, "Conflict", "Precondition failed: UID in precondition differs")
        return self._store(key[0], known, _merge_patch(known, patch))

    def delete(self, key: Key, uid: str | None) -> Json:
        known = self.objects.get(key)
        if known is None:
            raise Refusal(404, "NotFound", f"{key[0]} {key[2]!r} not found")
        if uid not in (None, known["metadata"]["uid"]):
            raise Refusal(409, "Conflict", "Precondition failed: UID in precondition differs")
        self.remove(key)
        return known

    def listed(self, plural: str, namespace: str, query: Json) -> tuple[list[Json], str]:
        found = [
            each
            for key, each in sorted(self.objects.items())
            if key[0] == plural and key[1] in (namespace, "") and _selected(each, query)
        ]
        return found, str(self._revision)

    async def watched(self, plural: str, namespace: str, query: Json) -> AsyncIterator[Json]:
        after = int(query["resourceVersion"])
        if after < self._oldest:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            yield {"type": "ERROR", "object": status}
            return
        run = self._run_of_server
        while run == self._run_of_server:
            changed = self._changed
            for each in [each for each in self._history if each.revision > after]:
                after = each.revision
                in_scope = each.plural == plural and each.found["metadata"].get("namespace", "") in (namespace, "")
                if in_scope and _selected(each.found, query):
                    yield {"type": each.type, "object": each.found}
            bookmark = {"kind": KINDS[plural], "metadata": {"resourceVersion": str(after)}}
            yield {"type": "BOOKMARK", "object": bookmark}
            await changed.wait()

    async def log(self, pod: str, query: Json) -> AsyncIterator[str]:
        key = (pod, query["container"])
        lines = self.logs.get(key, [])
        shown = max(0, len(lines) - int(query.get("tailLines", len(lines))))
        while True:
            changed = self._changed
            for line in self.logs.get(key, [])[shown:]:
                shown += 1
                yield line
            if query.get("follow") != "true" or pod not in self.names("pods"):
                return
            await changed.wait()

    def restart(self, *, down: bool) -> None:
        """The API server goes away, with its connections, or comes back."""
        self.down = down
        self._run_of_server += 1
        self._wake()

    def _store(self, plural: str, known: Json | None, found: Json) -> Json:
        same = known is not None and {**known, "metadata": {**known["metadata"], "managedFields": 0}} == {
            **found,
            "metadata": {**found["metadata"], "managedFields": 0},
        }
        return known if same and known is not None else self.put(plural, found)

    def _tell(self, type_: str, plural: str, found: Json) -> None:
        self._history.append(Happened(self._revision, type_, plural, copy.deepcopy(found)))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # What the controllers, the scheduler and the kubelet do.

    def _lead(self) -> None:
        """A slice for each Service with the ready pods of its selector, while `hold_slices` is not set."""
        if self.hold_slices:
            return
        for service in [each for key, each in self.objects.items() if key[0] == "services"]:
            pods = [each for key, each in sorted(self.objects.items()) if key[0] == "pods" and _chosen(service, each)]
            endpoints = [
                {"targetRef": {"name": each["metadata"]["name"]}, "conditions": {"ready": True}} for each in pods
            ]
            metadata = service["metadata"]
            key = ("endpointslices", metadata["namespace"], f"{metadata['name']}-slice")
            known = self.objects.get(key)
            labels = metadata.get("labels") or {}
            if known is None or (known["endpoints"], known["metadata"]["labels"]) != (endpoints, labels):
                owner = {"kind": "Service", "name": metadata["name"], "uid": metadata["uid"]}
                named = {"name": key[2], "namespace": key[1], "labels": labels, "ownerReferences": [owner]}
                self.put("endpointslices", {"metadata": named, "endpoints": endpoints})

    def release_slices(self) -> None:
        """The controller of endpoints catches up."""
        self.hold_slices = False
        self._lead()

    def _run(self, deployment: Json) -> None:
        """As many pods of the latest template as wanted, and none of an older one."""
        name = deployment["metadata"]["name"]
        template = deployment["spec"]["template"]
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
        prefix = f"{name}-{digest}-"
        pods = [key for key in self.objects if key[0] == "pods" and key[2].startswith(f"{name}-")]
        current = sorted(key for key in pods if key[2].startswith(prefix))
        wanted = deployment["spec"].get("replicas", 1)
        for _ in range(wanted - len(current)):
            self._serial += 1
            self._start(deployment, f"{prefix}{self._serial:05}")
        for key in [*(set(pods) - set(current)), *current[wanted:]]:
            self.remove(key)

    def _start(self, deployment: Json, name: str) -> None:
        template = copy.deepcopy(deployment["spec"]["template"])
        owner = {"kind": "Deployment", "name": deployment["metadata"]["name"], "uid": deployment["metadata"]["uid"]}
        template["metadata"] |= {
            "name": name,
            "namespace": deployment["metadata"]["namespace"],
            "ownerReferences": [owner],
        }
        template["spec"]["nodeName"] = "node-1"
        status = self.hold_pods or _running(f"10.244.0.{self._serial % 250 + 1}", name)
        for container in ("worker", "sidecar"):
            self.logs.setdefault((name, container), []).append("started")
        self.put("pods", {"apiVersion": "v1", "kind": "Pod", **template, "status": copy.deepcopy(status)})


class Server:
    """The cluster's API on loopback. `kubeconfig` names it."""

    def __init__(self, cluster: Cluster, directory: pathlib.Path) -> None:
        self.cluster = cluster
        self.kubeconfig = directory / "kubeconfig"
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://{host}:{port}"}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )

    async def stop(self) -> None:
        if self._runner is not None:
            self.cluster.restart(down=True)
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.cluster.down:
            assert request.transport is not None
            request.transport.close()
            return web.Response(status=503)
        self.cluster.requests.append((request.method, request.path))
        try:
            return await self._dispatch(request)
        except Refusal as refusal:
            return _status(refusal)

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/apis/authorization.k8s.io"):
            return web.json_response(_reviewed(await request.json(), self.cluster), status=201)
        found = _PATH.fullmatch(request.path)
        if found is None or found["plural"] not in KINDS:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        self._authorize(_verb(request, found), found["plural"])
        key = (found["plural"], found["ns"] or "", found["name"] or "")
        if found["sub"]:
            return await _stream(request, (f"{line}\n" async for line in self.cluster.log(key[2], dict(request.query))))
        if request.method == "GET" and request.query.get("watch") == "true":
            events = self.cluster.watched(key[0], key[1], dict(request.query))
            return await _stream(request, self._said(events))
        if request.method == "GET" and not key[2]:
            return self._list(key, request)
        return await self._one(request, key)

    async def _said(self, events: AsyncIterator[Json]) -> AsyncIterator[str]:
        async for event in events:
            yield f"{json.dumps(event)}\n"
        if self.cluster.last_words:
            yield self.cluster.last_words

    def _list(self, key: Key, request: web.Request) -> web.Response:
        items, revision = self.cluster.listed(key[0], key[1], dict(request.query))
        first = int(request.query.get("continue", 0))
        after = first + int(request.query.get("limit", len(items) or 1))
        page = [{k: v for k, v in each.items() if k not in ("kind", "apiVersion")} for each in items[first:after]]
        metadata = {"resourceVersion": revision, **({"continue": str(after)} if after < len(items) else {})}
        return web.json_response({"kind": "List", "metadata": metadata, "items": page})

    async def _one(self, request: web.Request, key: Key) -> web.Response:
        body = json.loads(await request.text() or "{}")
        if request.method == "GET":
            if key not in self.cluster.objects:
                raise Refusal(404, "NotFound", f"{key[0]} {key[2]!r} not found")
            return web.json_response(self.cluster.objects[key])
        if request.method == "DELETE":
            return web.json_response(self.cluster.delete(key, (body.get("preconditions") or {}).get("uid")))
        if request.method == "PATCH" and "apply-patch" in request.content_type:
            found, created = self.cluster.apply(key, body, request.query[MANAGER])
            return web.json_response(found, status=201 if created else 200)
        if request.method == "PATCH":
            return web.json_response(self.cluster.merge(key, body))
        raise Refusal(405, "MethodNotAllowed", request.method)

    def _authorize(self, verb: str, plural: str) -> None:
        if (verb, plural) in self.cluster.denied:
            message = f'{plural} is forbidden: User "u" cannot {verb} resource "{plural}" in API group ""'
            raise Refusal(403, "Forbidden", message)


@contextlib.asynccontextmanager
async def serve(directory: pathlib.Path, cluster: Cluster | None = None) -> AsyncIterator[Server]:
    """Runs the API while in use."""
    server = Server(cluster or Cluster(), directory)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def _stream(request: web.Request, lines: AsyncIterator[str]) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):
        async for line in lines:
            await response.write(line.encode())
    return response


def _verb(request: web.Request, found: re.Match[str]) -> str:
    if request.method == "GET":
        if request.query.get("watch") == "true":
            return "watch"
        return "get" if found["name"] else "list"
    return request.method.lower()


def _status(refusal: Refusal) -> web.Response:
    body = {"kind": "Status", "code": refusal.code, "reason": refusal.reason, "message": str(refusal)}
    return web.json_response(body, status=refusal.code)


def _reviewed(body: Json, cluster: Cluster) -> Json:
    if body["kind"] == "SelfSubjectRulesReview":
        return {"status": {"resourceRules": [], "incomplete": True}}
    asked = body["spec"]["resourceAttributes"]
    resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
    return {"status": {"allowed": (asked["verb"], resource) not in cluster.denied}}


def _selected(found: Json, query: Json) -> bool:
    labels = found["metadata"].get("labels") or {}
    wanted = _pairs(query.get("labelSelector", ""))
    fields = _pairs(query.get("fieldSelector", ""))
    return wanted.items() <= labels.items() and all(found.get(key) == value for key, value in fields.items())


def _pairs(selector: str) -> dict[str, str]:
    return {key: value for key, _, value in (each.partition("=") for each in selector.split(",") if each)}


def _without(known: Json, before: Json, now: Json) -> Json:
    """What was applied before and is no more goes."""
    kept = dict(known)
    for key, value in before.items():
        if key not in now:
            kept.pop(key, None)
        elif isinstance(value, dict) and isinstance(now[key], dict) and isinstance(kept.get(key), dict):
            kept[key] = _without(kept[key], value, now[key])
    return kept


def _merged(known: Json, applied: Json) -> Json:
    merged = dict(known)
    for key, value in applied.items():
        if isinstance(value, dict) and key not in ("selector", "nodeSelector"):
            merged[key] = _merged(merged.get(key) or {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _merge_patch(known: Json, patch: Json) -> Json:
    merged = dict(known)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_patch(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return merged


def _managed(applied: Json, manager: str) -> Json:
    fields: Json = {f"f:{key}": {} for key in applied.get("spec") or {}}
    return {"manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": fields}}


def _chosen(service: Json, pod: Json) -> bool:
    selector = service["spec"].get("selector") or {}
    conditions = (pod.get("status") or {}).get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and bool(selector) and selector.items() <= (pod["metadata"].get("labels") or {}).items()


def _running(address: str, name: str) -> Json:
    return {
        "phase": "Running",
        "podIP": address,
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
        "initContainerStatuses": [_container("sidecar", name, 0)],
        "containerStatuses": [_container("worker", name, 0)],
    }


def _container(container: str, pod: str, restarts: int) -> Json:
    return {
        "name": container,
        "ready": True,
        "restartCount": restarts,
        "containerID": f"fake://{pod}/{container}/{restarts}",
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    }


def _restart_worker(pod: Json) -> None:
    status = pod["status"]
    restarts = status["containerStatuses"][0]["restartCount"] + 1
    status["containerStatuses"] = [_container("worker", pod["metadata"]["name"], restarts)]


def waiting(reason: str, message: str = "", /, **last: Any) -> Json:
    """Status of a pod whose worker does not run, as a kubelet writes it."""
    return {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
        "containerStatuses": [
            {
                "name": "worker",
                "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": message}},
                "lastState": {"terminated": last} if last else {},
            }
        ],
    }


def unscheduled(message: str) -> Json:
    """Status of a pod that the scheduler found no node for."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}

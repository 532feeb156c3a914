"""The metrics API behind a real API server: discovery, rights, and the real HorizontalPodAutoscaler that reads it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import kubernetes
import prometheus_client
import pytest

from tests.kubernetes import by_hand
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import waiting
from tms_server import clock as clock_module
from tms_server.backends.kubernetes import connect
from tms_server.metrics_api import bodies, certificates, kube, registration, selectors, server, service
from tms_server.model import lease

ADDRESS, PORT = "10.244.254.9", 8443
METRICS = f"/apis/{bodies.GROUP_VERSION}"
INSTALLATION = "i-0123456789abcdef"
LEASE = "l-0123456789abcdef"
Made = TypeVar("Made")


class Load:
    """Metrics of one lease, as the test sets them; None: the workers cannot say."""

    def __init__(self) -> None:
        self.milli: dict[lease.MetricKind, int | None] = {}
        self.clock = clock_module.SystemClock()

    async def series(self, kind: lease.MetricKind, namespace: str, selector: selectors.Selector) -> list[bodies.Series]:
        value, labels = self.milli.get(kind), {"lease": LEASE}
        if value is None or not selector.matches(labels):
            return []
        window = dt.timedelta(seconds=15)
        return [bodies.Series(kind=kind, labels=labels, value_milli=value, at=self.clock.now(), window=window)]


@dataclasses.dataclass
class Face:
    """The metrics API of one installation in a namespace, and what it answers."""

    opened: service.MetricsApi
    load: Load
    namespace: str
    kept: certificates.Certificates
    api: kube.Kube


@pytest.fixture
async def face(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str
) -> AsyncIterator[Face]:
    clock, load = clock_module.SystemClock(), Load()
    access = kube.Kube(await connect.connect(connect.Connection(kubeconfig=cluster.kubeconfig)))
    names = (f"metrics.{namespace}.svc", f"metrics.{namespace}")
    place = certificates.Place(namespace=namespace, names=names, installation=INSTALLATION)
    kept = certificates.Certificates(access, place, clock)
    await kept.refresh()
    opened = service.MetricsApi(
        service.Parts(api=access, source=load, clock=clock, registry=prometheus_client.CollectorRegistry()),
        service.Options(
            at=server.Address(host=ADDRESS, port=PORT),
            service=registration.Service(namespace=namespace, name="metrics"),
            installation=INSTALLATION,
        ),
        kept.current,
    )
    await asyncio.to_thread(
        by_hand.publish, api, by_hand.Service(namespace, "metrics", (ADDRESS,), port=443, target_port=PORT)
    )
    await opened.open()
    yield Face(opened, load, namespace, kept, access)
    if opened.state.holder is registration.Holder.OURS:
        await asyncio.to_thread(kubernetes.client.ApiregistrationV1Api(api).delete_api_service, registration.NAME)
    await opened.close()
    await access.close()


async def answered(
    cluster: cluster_client.Cluster, path: str, user: str, good: Callable[[cluster_client.Answer], object]
) -> cluster_client.Answer:
    return await asyncio.to_thread(waiting.until, lambda: cluster.get(path, cluster.token(user)), good)


async def test_discovery_and_values_through_the_aggregator(face: Face, cluster: cluster_client.Cluster) -> None:
    found = await answered(cluster, METRICS, "root", lambda answer: answer.status == 200)
    assert {each["name"] for each in json.loads(found.body)["resources"]} == set(bodies.KINDS)
    face.load.milli[lease.MetricKind.QUEUE_TIME] = 12_345
    path = f"{METRICS}/namespaces/{face.namespace}/tms_queue_time?labelSelector=lease%3D{LEASE}"
    values = json.loads((await answered(cluster, path, "root", lambda answer: answer.status == 200)).body)
    assert [each["value"] for each in values["items"]] == ["12345m"]
    none = await asyncio.to_thread(cluster.get, path.replace("queue_time", "latency"), cluster.token("root"))
    assert json.loads(none.body)["items"] == []
    # The API server lists what it can discover in one document, too: the group is in it.
    groups = json.loads((await asyncio.to_thread(cluster.get, "/apis", cluster.token("root"))).body)
    assert bodies.GROUP in {each["name"] for each in groups["groups"]}


async def test_rights_are_the_clusters_own(
    face: Face, cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient
) -> None:
    path = f"{METRICS}/namespaces/{face.namespace}/tms_queue_time"
    await answered(cluster, path, "root", lambda answer: answer.status == 200)
    assert (await asyncio.to_thread(cluster.get, path, cluster.token("mallory"))).status == 403
    rights = kubernetes.client.RbacAuthorizationV1Api(api)
    rule = {"apiGroups": [bodies.GROUP], "resources": ["tms_queue_time"], "verbs": ["list"]}
    role = made(kubernetes.client.V1Role, {"metadata": {"name": "reader"}, "rules": [rule]})
    await asyncio.to_thread(rights.create_namespaced_role, face.namespace, role)
    binding = made(
        kubernetes.client.V1RoleBinding,
        {
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
        },
    )
    await asyncio.to_thread(rights.create_namespaced_role_binding, face.namespace, binding)
    await answered(cluster, path, "alice", lambda answer: answer.status == 200)
    assert (
        await asyncio.to_thread(cluster.get, path.replace("queue_time", "latency"), cluster.token("alice"))
    ).status == 403


async def test_a_second_server_shows_the_same_certificate_and_a_strangers_secret_is_left(face: Face) -> None:
    place = certificates.Place(namespace=face.namespace, names=("x",), installation=INSTALLATION)
    other = certificates.Certificates(face.api, dataclasses.replace(place, names=()), clock_module.SystemClock())
    await other.refresh()
    assert other.current == face.kept.current
    stranger = certificates.Certificates(
        face.api, dataclasses.replace(place, installation="i-other"), clock_module.SystemClock()
    )
    with pytest.raises(Exception, match="NameTaken"):
        await stranger.refresh()
    published = await face.api.get(f"/api/v1/namespaces/{face.namespace}/configmaps/{certificates.CONFIG_MAP}")
    assert published["data"]["ca.crt"] == face.kept.current.ca


async def test_a_group_of_somebody_else_is_never_taken(face: Face) -> None:
    theirs = registration.Registration(face.api, registration.Service(namespace="other", name="adapter"), "i-other")
    state = await theirs.keep("ca")
    assert state.holder is registration.Holder.OTHER
    assert f"{face.namespace}/metrics" in state.message
    found = await face.api.get(registration.PATH)
    assert found["spec"]["service"]["name"] == "metrics"


@pytest.mark.slow  # the controller looks every second or two, and waits for its own windows
async def test_the_real_autoscaler_grows_and_shrinks_by_our_values(
    face: Face, api: kubernetes.client.ApiClient
) -> None:
    face.load.milli[lease.MetricKind.IN_FLIGHT] = 1000
    await asyncio.to_thread(make_target, api, face.namespace)
    async with scaled(api, face.namespace, "tms_in_flight", {"type": "AverageValue", "averageValue": "4"}):
        await size_is(api, face.namespace, 1)
        face.load.milli[lease.MetricKind.IN_FLIGHT] = 11_000
        await size_is(api, face.namespace, 3)
        # Nobody shrinks a lease for want of news.
        face.load.milli[lease.MetricKind.IN_FLIGHT] = None
        await autoscaler_says(api, face.namespace, "ScalingActive", "False")
        assert await asyncio.to_thread(replicas, api, face.namespace) == 3
        face.load.milli[lease.MetricKind.IN_FLIGHT] = 0
        await size_is(api, face.namespace, 1)


@pytest.mark.slow  # the same
async def test_the_real_autoscaler_takes_a_value_of_the_whole_for_the_workers_that_serve(
    face: Face, api: kubernetes.client.ApiClient
) -> None:
    face.load.milli[lease.MetricKind.QUEUE_TIME] = 15_000
    await asyncio.to_thread(make_target, api, face.namespace)
    async with scaled(api, face.namespace, "tms_queue_time", {"type": "Value", "value": "10"}):
        # 15 ms where 10 are wanted, on the one worker that serves: two; and on two that serve: three.
        await size_is(api, face.namespace, 3)
        face.load.milli[lease.MetricKind.QUEUE_TIME] = 10_500
        await autoscaler_says(api, face.namespace, "AbleToScale", "True")
        assert await asyncio.to_thread(replicas, api, face.namespace) == 3
        face.load.milli[lease.MetricKind.QUEUE_TIME] = 0
        await size_is(api, face.namespace, 1)


def made(model: type[Made], manifest: dict[str, Any]) -> Made:
    found = model.from_dict(manifest)  # type: ignore[attr-defined]  # every model has it
    assert isinstance(found, model)
    return found


def make_target(api: kubernetes.client.ApiClient, namespace: str) -> None:
    labels = {"app": "target"}
    pause = {"name": "pause", "image": "tms/worker:test", "command": ["sh", "-c", "sleep 600"]}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [pause], "terminationGracePeriodSeconds": 1}}
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "target"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }
    wanted = made(kubernetes.client.V1Deployment, manifest)
    kubernetes.client.AppsV1Api(api).create_namespaced_deployment(namespace, wanted)


@contextlib.asynccontextmanager
async def scaled(
    api: kubernetes.client.ApiClient, namespace: str, metric: str, target: dict[str, Any]
) -> AsyncIterator[None]:
    external = {"metric": {"name": metric, "selector": {"matchLabels": {"lease": LEASE}}}, "target": target}
    manifest = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "target"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "target"},
            "minReplicas": 1,
            "maxReplicas": 4,
            "metrics": [{"type": "External", "external": external}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }
    wanted = made(kubernetes.client.V2HorizontalPodAutoscaler, manifest)
    autoscaling = kubernetes.client.AutoscalingV2Api(api)
    await asyncio.to_thread(autoscaling.create_namespaced_horizontal_pod_autoscaler, namespace, wanted)
    yield
    await asyncio.to_thread(autoscaling.delete_namespaced_horizontal_pod_autoscaler, "target", namespace)


def replicas(api: kubernetes.client.ApiClient, namespace: str) -> int | None:
    found = kubernetes.client.AppsV1Api(api).read_namespaced_deployment("target", namespace)
    assert found.spec is not None
    return found.spec.replicas


async def size_is(api: kubernetes.client.ApiClient, namespace: str, size: int) -> None:
    await asyncio.to_thread(waiting.until, lambda: replicas(api, namespace), lambda now: now == size, 60.0)


async def autoscaler_says(api: kubernetes.client.ApiClient, namespace: str, condition: str, status: str) -> None:
    autoscaling = kubernetes.client.AutoscalingV2Api(api)

    def conditions() -> dict[str, str]:
        found = autoscaling.read_namespaced_horizontal_pod_autoscaler("target", namespace).status
        return {each.type: each.status for each in (found.conditions or ())} if found is not None else {}

    await asyncio.to_thread(waiting.until, conditions, lambda seen: seen.get(condition) == status, 60.0)

"""The backend's objects on a real API server: what is applied is seen as applied, and only what is ours is touched."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import kubernetes
import pytest

from tests.kubernetes.cluster import client as cluster_client
from tests.support import kubernetes_backend as support
from tms_server.backends.kubernetes import backend as backend_module
from tms_server.backends.kubernetes import kinds, names, objects
from tms_server.fleet import desired
from tms_server.model import errors, ids, resources
from tms_server.ports import backend

GROUP, LEASE = support.GROUP, support.LEASE
RICH = support.spec(worker=resources.WorkerSpec(profile="full", resources=resources.Resources(gpus=1)))
SCALED = dataclasses.replace(RICH, scaling=support.SCALING, replicas=2)
NAME = desired.name_owner(ids.DEFAULT_NAMESPACE, ids.LeaseName("digits"))


@pytest.fixture
async def runs(cluster: cluster_client.Cluster, namespace: str) -> AsyncIterator[backend_module.KubernetesBackend]:
    async with support.opened(support.options(namespace), cluster.kubeconfig) as opened:
        yield opened


def routes(*workers: ids.WorkerId) -> list[backend.Route]:
    owners = (desired.lease_owner(LEASE), NAME)
    return [backend.Route(lease_id=LEASE, owners=owners, workers=frozenset(workers))]


def live(api: kubernetes.client.ApiClient, namespace: str) -> Any:
    return kubernetes.client.AppsV1Api(api).read_namespaced_deployment(GROUP, namespace)


@pytest.mark.parametrize("wanted", [support.spec(), RICH, SCALED], ids=["plain", "rich", "scaled"])
async def test_what_was_applied_is_seen_as_applied_by_this_server_and_the_next(
    runs: backend_module.KubernetesBackend, cluster: cluster_client.Cluster, namespace: str, wanted: backend.LaunchSpec
) -> None:
    await runs.launch(wanted)
    await runs.route(routes())
    written = runs.api.writes
    assert written <= 8
    assert not runs.differs(wanted)
    await runs.launch(wanted)
    await runs.route(routes())
    assert runs.api.writes == written
    async with support.opened(support.options(namespace), cluster.kubeconfig) as after:
        assert not after.differs(wanted)
        await after.launch(wanted)
        await after.route(routes())
        assert after.api.writes == 0


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        (kinds.DEPLOYMENTS, {"spec": {"replicas": 0}}),
        (kinds.DEPLOYMENTS, {"spec": {"paused": True}}),
        (kinds.DEPLOYMENTS, {"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}),
        (kinds.DEPLOYMENTS, {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}),
        (kinds.SECRETS, {"data": {"token": "YQ=="}}),
        (kinds.SCALERS, {"spec": {"maxReplicas": 9}}),
    ],
)
async def test_what_was_edited_by_hand_is_brought_back(
    runs: backend_module.KubernetesBackend, kind: kinds.Kind, patch: dict[str, Any]
) -> None:
    wanted = SCALED if kind is kinds.SCALERS else RICH
    await runs.launch(wanted)
    await runs.api.merge(kind, GROUP, patch, manager="somebody")
    await support.until(runs, lambda: runs.differs(wanted))
    await runs.launch(wanted)
    assert not runs.differs(wanted)


@pytest.mark.parametrize("kind", [kinds.DEPLOYMENTS, kinds.SECRETS, kinds.SCALERS])
async def test_what_was_deleted_by_hand_is_made_again(runs: backend_module.KubernetesBackend, kind: kinds.Kind) -> None:
    await runs.launch(SCALED)
    found = await runs.api.get(kind, GROUP)
    assert found is not None
    await runs.api.delete(kind, GROUP, found["metadata"]["uid"])
    await support.until(runs, lambda: runs.differs(SCALED))
    await runs.launch(SCALED)
    assert not runs.differs(SCALED)
    assert await runs.api.get(kind, GROUP) is not None


async def test_an_edited_service_leads_where_it_should_again(runs: backend_module.KubernetesBackend) -> None:
    await runs.route(routes())
    selector = {names.serving_label(LEASE): None, "app": "elsewhere"}
    await runs.api.merge(kinds.SERVICES, "digits", {"spec": {"selector": selector}}, manager="somebody")
    steps = runs.watch()
    while True:
        await runs.route(routes())
        found = await runs.api.get(kinds.SERVICES, "digits")
        assert found is not None
        if names.serving_label(LEASE) in found["spec"]["selector"] and "app" not in found["spec"]["selector"]:
            break
        await anext(steps)


async def test_a_profile_that_says_less_takes_its_fields_back(
    runs: backend_module.KubernetesBackend,
    cluster: cluster_client.Cluster,
    namespace: str,
    api: kubernetes.client.ApiClient,
) -> None:
    await runs.launch(RICH)
    assert live(api, namespace).spec.template.spec.node_selector
    profiles = {**support.options().profiles, "full": dataclasses.replace(support.FULL, node_selector={})}
    async with support.opened(support.options(namespace, profiles=profiles), cluster.kubeconfig) as after:
        assert after.differs(RICH)
        await after.launch(RICH)
        assert not after.differs(RICH)
    assert not live(api, namespace).spec.template.spec.node_selector


async def test_replicas_belong_to_the_autoscaler(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    await runs.launch(SCALED)
    assert live(api, namespace).spec.replicas == 2
    apps = kubernetes.client.AppsV1Api(api)
    apps.patch_namespaced_deployment_scale(GROUP, namespace, {"spec": {"replicas": 4}}, field_manager="scaler")
    assert not runs.differs(SCALED)
    other = dataclasses.replace(SCALED, worker=dataclasses.replace(SCALED.worker, image="tms/worker:2"))
    await runs.launch(other)
    assert live(api, namespace).spec.replicas == 4


async def test_what_somebody_scales_to_none_comes_back(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    await runs.launch(SCALED)
    apps = kubernetes.client.AppsV1Api(api)
    apps.patch_namespaced_deployment_scale(GROUP, namespace, {"spec": {"replicas": 0}}, field_manager="downscaler")
    await support.until(runs, lambda: runs.differs(SCALED))
    await runs.launch(SCALED)
    assert live(api, namespace).spec.replicas == 2
    assert not runs.differs(SCALED)


async def test_an_image_changed_before_the_autoscaler_spoke_keeps_the_replicas(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    await runs.launch(SCALED)
    await runs.launch(dataclasses.replace(SCALED, worker=dataclasses.replace(SCALED.worker, image="tms/worker:2")))
    assert live(api, namespace).spec.replicas == 2


async def test_objects_of_others_are_never_adopted(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    core = kubernetes.client.CoreV1Api(api)
    port = kubernetes.client.V1ServicePort(name="http", port=8000)
    theirs = kubernetes.client.V1Service(
        metadata=kubernetes.client.V1ObjectMeta(name="digits"),
        spec=kubernetes.client.V1ServiceSpec(ports=[port], selector={"app": "theirs"}),
    )
    core.create_namespaced_service(namespace, theirs)
    core.create_namespaced_secret(
        namespace, kubernetes.client.V1Secret(metadata=kubernetes.client.V1ObjectMeta(name=GROUP))
    )
    before = await runs.api.get(kinds.SERVICES, "digits")
    troubles = await runs.route(routes())
    assert troubles[NAME].reason == "NameTaken"
    assert set(troubles) == {NAME}
    assert await runs.api.get(kinds.SERVICES, "digits") == before
    with pytest.raises(objects.NameTaken, match="Secret"):
        await runs.launch(support.spec())
    await runs.retire(GROUP)
    await runs.route([])
    services, _ = await runs.api.list(kinds.SERVICES, {})
    assert [each["metadata"]["name"] for each in services] == ["digits"]
    assert await runs.api.get(kinds.SECRETS, GROUP) is not None


async def test_two_installations_in_one_namespace_do_not_see_each_other(
    runs: backend_module.KubernetesBackend, cluster: cluster_client.Cluster, namespace: str
) -> None:
    options = support.options(namespace, installation_id=ids.InstallationId("i-other"))
    other_lease = ids.LeaseId("l-fedcba9876543210")
    other_routes = [
        backend.Route(lease_id=other_lease, owners=(desired.lease_owner(other_lease), NAME), workers=frozenset())
    ]
    await runs.launch(support.spec())
    await runs.route(routes())
    async with support.opened(options, cluster.kubeconfig) as other:
        assert await other.observe() == ()
        assert (await other.route(other_routes))[NAME].reason == "NameTaken"
        with pytest.raises(objects.NameTaken):
            await other.launch(support.spec())
        await other.route([])
        await other.retire(GROUP)
    assert not runs.differs(support.spec())
    assert await runs.api.get(kinds.SERVICES, "digits") is not None


async def test_missing_rights_are_told_at_the_start(
    cluster: cluster_client.Cluster, namespace: str, tmp_path: pathlib.Path
) -> None:
    kubeconfig = support.kubeconfig_of(tmp_path, cluster.server, cluster.ca_certificate, cluster.token("mallory"))
    with pytest.raises(errors.PermissionDenied, match=r"deployments\.apps \(get, list, watch, create, patch, delete\)"):
        async with support.opened(support.options(namespace), kubeconfig):
            pass


async def test_credentials_that_nobody_knows_are_told(
    cluster: cluster_client.Cluster, namespace: str, tmp_path: pathlib.Path
) -> None:
    kubeconfig = support.kubeconfig_of(tmp_path, cluster.server, cluster.ca_certificate, "unknown")
    with pytest.raises(errors.PermissionDenied, match="credentials"):
        async with support.opened(support.options(namespace), kubeconfig):
            pass


async def test_the_needed_rights_are_enough(
    cluster: cluster_client.Cluster, namespace: str, api: kubernetes.client.ApiClient, tmp_path: pathlib.Path
) -> None:
    rules = [
        kubernetes.client.V1PolicyRule(api_groups=[each.group], resources=[each.plural], verbs=list(each.verbs))
        for each in kinds.ALL
        if not each.optional
    ]
    grants = kubernetes.client.RbacAuthorizationV1Api(api)
    metadata = kubernetes.client.V1ObjectMeta(name="server")
    grants.create_namespaced_role(namespace, kubernetes.client.V1Role(metadata=metadata, rules=rules))
    subject = kubernetes.client.RbacV1Subject(kind="User", name="mallory", api_group="rbac.authorization.k8s.io")
    role = kubernetes.client.V1RoleRef(kind="Role", name="server", api_group="rbac.authorization.k8s.io")
    grants.create_namespaced_role_binding(
        namespace, kubernetes.client.V1RoleBinding(metadata=metadata, subjects=[subject], role_ref=role)
    )
    kubeconfig = support.kubeconfig_of(tmp_path, cluster.server, cluster.ca_certificate, cluster.token("mallory"))
    async with support.opened(support.options(namespace), kubeconfig) as runs:
        await runs.launch(SCALED)
        await runs.route(routes())
        assert runs.warn(SCALED.worker) is None
        await runs.route([])
        # Nodes cannot be read, so nothing may hold a drain back.
        assert not runs._view.all(kinds.BUDGETS)


async def test_a_full_quota_is_told(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    quota = kubernetes.client.V1ResourceQuota(
        metadata=kubernetes.client.V1ObjectMeta(name="none"),
        spec=kubernetes.client.V1ResourceQuotaSpec(hard={"pods": "0"}),
    )
    core = kubernetes.client.CoreV1Api(api)
    core.create_namespaced_resource_quota(namespace, quota)
    for event in kubernetes.watch.Watch().stream(core.list_namespaced_resource_quota, namespace, timeout_seconds=30):  # type: ignore[no-untyped-call]  # theirs
        if event["object"].status.hard:
            break
    await runs.launch(support.spec())
    assert "exceeded quota" in (await support.trouble(runs, "QuotaExceeded")).message


async def test_pods_obey_the_restricted_standard(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    enforced = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    kubernetes.client.CoreV1Api(api).patch_namespace(namespace, enforced)
    await runs.launch(RICH)

    async def pods() -> bool:
        found = await support.observed(runs)
        assert found is not None
        assert found.trouble is None or found.trouble.reason != "Refused"
        return bool(found.replicas)

    await support.until(runs, pods)


@pytest.fixture
def node(api: kubernetes.client.ApiClient) -> Iterator[str]:
    """A node that nobody runs: what is put there is what the test says."""
    core = kubernetes.client.CoreV1Api(api)
    metadata = kubernetes.client.V1ObjectMeta(name="by-hand")
    core.create_node(kubernetes.client.V1Node(metadata=metadata, spec=kubernetes.client.V1NodeSpec(unschedulable=True)))
    yield "by-hand"
    core.delete_node("by-hand")


async def test_endpoints_tell_which_pods_are_reached_for_which_lease(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str, node: str
) -> None:
    labels = {
        names.INSTALLATION: runs._options.installation_id,
        names.GROUP: GROUP,
        names.serving_label(LEASE): "serving",
    }
    core = kubernetes.client.CoreV1Api(api)
    container = kubernetes.client.V1Container(name="worker", image="tms/worker:1")
    pod = kubernetes.client.V1Pod(
        metadata=kubernetes.client.V1ObjectMeta(name="by-hand", labels=labels),
        spec=kubernetes.client.V1PodSpec(containers=[container], node_name=node),
    )
    core.create_namespaced_pod(namespace, pod)
    ready = {"type": "Ready", "status": "True"}
    status = {
        "status": {"phase": "Running", "podIP": "10.244.9.9", "podIPs": [{"ip": "10.244.9.9"}], "conditions": [ready]}
    }
    core.patch_namespaced_pod_status("by-hand", namespace, status)
    worker = ids.WorkerId(GROUP, ids.ReplicaId("by-hand"))
    await runs.route(routes(worker))
    await support.until(runs, lambda: runs._view.reached.reaching("by-hand") == {LEASE})
    await runs.route(routes())
    assert runs.routed(worker) == {LEASE}
    await support.until(runs, lambda: not runs.routed(worker))
    assert not runs._view.reached.reaching("by-hand")


@pytest.mark.disruptive
async def test_an_api_server_that_was_away_is_heard_again(
    runs: backend_module.KubernetesBackend, cluster: cluster_client.Cluster
) -> None:
    await runs.launch(support.spec())
    with cluster.without(cluster_client.API_SERVER):
        with pytest.raises(errors.Unavailable):
            await runs.launch(dataclasses.replace(support.spec(), replicas=2))
        assert await support.observed(runs) is not None
    await runs.launch(dataclasses.replace(support.spec(), replicas=2))
    await runs.api.merge(kinds.DEPLOYMENTS, GROUP, {"spec": {"replicas": 0}}, manager="somebody")
    await support.until(runs, lambda: runs.differs(dataclasses.replace(support.spec(), replicas=2)))

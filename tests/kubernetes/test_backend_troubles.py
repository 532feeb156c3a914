"""What goes wrong on a cluster is told in its own words, and what was moved, killed or lost comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import kubernetes
import pytest

from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster.kubelet import faults as faults_module
from tests.support import kubernetes_backend as support
from tms_server.backends.kubernetes import backend as backend_module
from tms_server.backends.kubernetes import kinds, names
from tms_server.backends.kubernetes import options as options_module
from tms_server.fleet import desired
from tms_server.model import ids, resources
from tms_server.ports import backend

GROUP, LEASE = support.GROUP, support.LEASE


@pytest.fixture
def faults(cluster: cluster_client.Cluster) -> faults_module.Faults:
    return faults_module.Faults(cluster.directory)


@pytest.fixture
def options(faults: faults_module.Faults, namespace: str) -> options_module.Options:
    return support.options(namespace, **support.stand_ins(faults))


@pytest.fixture
async def runs(
    cluster: cluster_client.Cluster, options: options_module.Options
) -> AsyncIterator[backend_module.KubernetesBackend]:
    async with support.opened(options, cluster.kubeconfig) as opened:
        yield opened
        await opened.retire(GROUP)


async def serving(runs: backend_module.KubernetesBackend, count: int = 1) -> list[backend.Replica]:
    """Waits until so many replicas are ready, and no others are there."""
    found: list[backend.Replica] = []

    async def reached() -> bool:
        group = await support.observed(runs)
        found[:] = group.replicas if group is not None else ()
        return len(found) == count and all(each.ready for each in found)

    await support.until(runs, reached)
    return found


async def test_a_worker_that_fits_nowhere_is_told_as_the_scheduler_says(
    runs: backend_module.KubernetesBackend,
) -> None:
    wanted = resources.WorkerSpec(profile="full", resources=resources.Resources(gpus=16))
    assert runs.warn(wanted) is not None
    await runs.launch(support.spec(worker=wanted))
    assert "Insufficient nvidia.com/gpu" in (await support.trouble(runs, "Unschedulable")).message


async def test_an_image_that_cannot_be_pulled_is_told(runs: backend_module.KubernetesBackend) -> None:
    await runs.launch(support.spec(worker=resources.WorkerSpec(image="nowhere.example/none:1")))
    assert "nowhere.example/none:1" in (await support.trouble(runs, "ImagePullFailed")).message


async def test_a_worker_that_ends_again_and_again_is_told(
    cluster: cluster_client.Cluster, options: options_module.Options
) -> None:
    ending = options_module.Profile(environment={"POD_EXIT": "3"}, termination_grace_s=1)
    profiles = {**options.profiles, "default": ending}
    async with support.opened(dataclasses.replace(options, profiles=profiles), cluster.kubeconfig) as runs:
        await runs.launch(support.spec())
        await support.trouble(runs, "CrashLoop")
        found = await support.observed(runs)
        assert found is not None
        assert found.phase is backend.Phase.BACKING_OFF
        await runs.retire(GROUP)


async def test_an_eviction_is_told_and_the_pod_replaced(
    runs: backend_module.KubernetesBackend, faults: faults_module.Faults, options: options_module.Options
) -> None:
    await runs.launch(support.spec())
    (before,) = await serving(runs)
    faults.evict(f"{options.namespace}/{before.id}")

    async def replaced() -> bool:
        group = await support.observed(runs)
        return group is not None and any(each.ready and each.id != before.id for each in group.replicas)

    await support.until(runs, replaced)


async def test_a_wedged_worker_is_started_anew_by_its_probe_only_after_it_was_taken_out(
    runs: backend_module.KubernetesBackend, faults: faults_module.Faults, options: options_module.Options
) -> None:
    await runs.launch(support.spec())
    (pod,) = await serving(runs)
    await runs.route([route(LEASE, pod)])
    await support.until(runs, lambda: runs._view.reached.reaching(pod.id) == {LEASE})
    faults.hold_readiness(f"{options.namespace}/{pod.id}")

    async def out() -> bool:
        group = await support.observed(runs)
        return group is not None and not any(each.ready for each in group.replicas)

    await support.until(runs, out)
    await support.until(runs, lambda: not runs._view.reached.reaching(pod.id))
    faults.release_readiness(f"{options.namespace}/{pod.id}")
    await serving(runs)


async def test_a_deployment_deleted_by_hand_comes_back(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    await runs.launch(support.spec())
    (before,) = await serving(runs)
    kubernetes.client.AppsV1Api(api).delete_namespaced_deployment(GROUP, namespace)
    await support.until(runs, lambda: runs.differs(support.spec()))
    await runs.launch(support.spec())

    async def replaced() -> bool:
        group = await support.observed(runs)
        return group is not None and any(each.ready and each.id != before.id for each in group.replicas)

    await support.until(runs, replaced)


async def test_another_image_rolls_with_one_more_pod_and_never_one_less(
    runs: backend_module.KubernetesBackend,
) -> None:
    await runs.launch(support.spec())
    (before,) = await serving(runs)
    other = support.spec(worker=resources.WorkerSpec(image="stand-in/worker:2"))
    await runs.launch(other)
    counts: list[int] = []

    async def rolled() -> bool:
        group = await support.observed(runs)
        assert group is not None
        counts.append(sum(each.ready for each in group.replicas))
        return all(each.id != before.id for each in group.replicas)

    await support.until(runs, rolled)
    assert min(counts) >= 1
    assert not runs.differs(other)


async def test_pods_leave_a_cordoned_node_before_anybody_evicts(
    runs: backend_module.KubernetesBackend, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    await runs.launch(support.spec())
    (before,) = await serving(runs)
    core = kubernetes.client.CoreV1Api(api)
    metadata = kubernetes.client.V1ObjectMeta(name=before.id, namespace=namespace)
    with pytest.raises(kubernetes.client.ApiException, match="disruption budget"):
        core.create_namespaced_pod_eviction(before.id, namespace, kubernetes.client.V1Eviction(metadata=metadata))
    core.patch_node(before.node, {"spec": {"unschedulable": True}})
    try:

        async def moved() -> bool:
            group = await support.observed(runs)
            assert group is not None
            assert any(each.ready for each in group.replicas)
            return all(each.node != before.node for each in group.replicas)

        await support.until(runs, moved)
        assert not runs.differs(support.spec())
    finally:
        core.patch_node(before.node, {"spec": {"unschedulable": None}})


async def test_no_drain_waits_for_ever_for_a_pod_that_cannot_move(
    cluster: cluster_client.Cluster, options: options_module.Options, api: kubernetes.client.ApiClient, node: str
) -> None:
    pinned = dataclasses.replace(options.profiles["default"], node_selector={"kubernetes.io/hostname": node})
    changed: dict[str, Any] = {"profiles": {**options.profiles, "default": pinned}, "drain_timeout_s": 1.0}
    core = kubernetes.client.CoreV1Api(api)
    async with support.opened(dataclasses.replace(options, **changed), cluster.kubeconfig) as runs:
        await runs.launch(support.spec())
        (before,) = await serving(runs)
        core.patch_node(node, {"spec": {"unschedulable": True}})
        try:
            await support.until(runs, lambda: runs._view.find(kinds.PODS, before.id) is None)
            await support.trouble(runs, "Unschedulable")
        finally:
            core.patch_node(node, {"spec": {"unschedulable": None}})
        await runs.retire(GROUP)


@pytest.fixture
def node(api: kubernetes.client.ApiClient) -> str:
    """A node that pods can run on."""
    nodes = kubernetes.client.CoreV1Api(api).list_node(label_selector="nvidia.com/gpu.present=true").items
    assert nodes
    assert nodes[0].metadata is not None
    return str(nodes[0].metadata.name)


def route(lease_id: ids.LeaseId, *replicas: backend.Replica) -> backend.Route:
    workers = frozenset(ids.WorkerId(GROUP, each.id) for each in replicas)
    return backend.Route(lease_id=lease_id, owners=(desired.lease_owner(lease_id),), workers=workers)


@pytest.mark.disruptive
async def test_a_lost_node_is_told_and_its_pods_are_replaced_and_no_retirement_waits_for_it(
    runs: backend_module.KubernetesBackend, faults: faults_module.Faults
) -> None:
    await runs.launch(support.spec())
    (before,) = await serving(runs)
    faults.lose_node(before.node)
    try:

        async def replaced() -> bool:
            group = await support.observed(runs)
            assert group is not None
            lost = [each for each in group.replicas if each.id == before.id]
            told = all(each.trouble is not None and each.trouble.reason == "NodeLost" for each in lost)
            return told and any(each.ready and each.node != before.node for each in group.replicas)

        await support.until(runs, replaced)
        await runs.retire(GROUP)
        assert await support.observed(runs) is None
        assert runs._view.find(kinds.PODS, before.id) is not None
        assert names.GROUP in runs._view.all(kinds.PODS)[before.id]["metadata"]["labels"]
    finally:
        faults.restore_node(before.node)

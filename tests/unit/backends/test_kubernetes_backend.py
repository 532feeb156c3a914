"""The Kubernetes backend on the small HTTP API: order of writes, silence in steady state, outages, drains."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog.testing

from tests.support import kubernetes_api as fake
from tests.support import kubernetes_backend as support
from tms_server.backends.kubernetes import backend as backend_module
from tms_server.backends.kubernetes import kinds, names, pod, router
from tms_server.fleet import desired
from tms_server.model import errors, ids, resources
from tms_server.ports import backend

GROUP, LEASE = support.GROUP, support.LEASE
OTHER = ids.LeaseId("l-fedcba9876543210")
NAME = desired.name_owner(ids.DEFAULT_NAMESPACE, ids.LeaseName("digits"))


@pytest.fixture
async def server(tmp_path: pathlib.Path) -> AsyncIterator[fake.Server]:
    async with fake.serve(tmp_path) as served:
        yield served


@pytest.fixture
async def runs(server: fake.Server) -> AsyncIterator[backend_module.KubernetesBackend]:
    async with support.opened(support.options(), server.kubeconfig) as opened:
        yield opened


async def worker(runs: backend_module.KubernetesBackend) -> ids.WorkerId:
    await runs.launch(support.spec())
    found: list[ids.ReplicaId] = []

    async def reached() -> bool:
        group = await support.observed(runs)
        found[:] = [each.id for each in group.replicas] if group is not None else []
        return bool(found)

    await support.until(runs, reached)
    return ids.WorkerId(GROUP, found[0])


def route(lease_id: ids.LeaseId, *workers: ids.WorkerId, name: bool = False) -> backend.Route:
    owners = (desired.lease_owner(lease_id), *((NAME,) if name else ()))
    return backend.Route(lease_id=lease_id, owners=owners, workers=frozenset(workers))


def node(name: str = "node-1", *, cordoned_at: str = "", **allocatable: str) -> dict[str, Any]:
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": cordoned_at}
    spec = {"unschedulable": True, "taints": [taint]} if cordoned_at else {}
    conditions = [{"type": "Ready", "status": "True"}]
    labels = {"kubernetes.io/os": "linux"}
    status = {"conditions": conditions, "allocatable": {key.replace("_", "/"): v for key, v in allocatable.items()}}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}


async def until_restarted(runs: backend_module.KubernetesBackend) -> None:
    """Returns once the backend has seen the worker of the group start again."""

    async def restarted() -> bool:
        found = await support.observed(runs)
        return found is not None and found.restarts == 1

    await support.until(runs, restarted)


async def test_a_lease_with_a_name_costs_eight_writes_at_most_and_then_none(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    scaled = dataclasses.replace(support.spec(), scaling=support.SCALING)
    await runs.launch(scaled)
    await support.until(runs, lambda: bool(server.cluster.names("pods")))
    (pod,) = server.cluster.names("pods")
    wanted = [route(LEASE, ids.WorkerId(GROUP, ids.ReplicaId(pod)), name=True)]
    await support.until(runs, lambda: runs._view.find(kinds.PODS, pod) is not None)
    await runs.route(wanted)
    # The budget is one for the installation.
    assert len(server.cluster.writes()) <= 8 + 1
    before = list(server.cluster.requests)
    for _ in range(5):
        await runs.route(wanted)
        await runs.launch(scaled)
        await runs.observe()
        assert not runs.differs(scaled)
    assert server.cluster.requests == before


async def test_a_name_never_leads_nowhere_while_it_moves(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    chosen = await worker(runs)
    await runs.route([route(LEASE, chosen, name=True)])
    gaps: list[str] = []
    put = server.cluster.put

    def watching(plural: str, found: fake.Json) -> fake.Json:
        stored = put(plural, found)
        selector = server.cluster.find("services", "digits")["spec"]["selector"]
        labels = server.cluster.find("pods", chosen.replica)["metadata"]["labels"]
        if not selector.items() <= labels.items():
            gaps.append(plural)
        return stored

    server.cluster.put = watching  # type: ignore[method-assign]  # looks at the cluster after every write
    await runs.route([route(LEASE), route(OTHER, chosen, name=True)])
    assert gaps == []
    labels = server.cluster.find("pods", chosen.replica)["metadata"]["labels"]
    assert names.serving_label(OTHER) in labels
    assert names.serving_label(LEASE) not in labels


async def test_one_patch_changes_all_labels_of_a_pod(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    chosen = await worker(runs)
    await runs.route([route(LEASE), route(OTHER)])
    server.cluster.requests.clear()
    await runs.route([route(LEASE, chosen), route(OTHER, chosen)])
    await runs.route([route(LEASE), route(OTHER)])
    assert server.cluster.writes() == [("PATCH", f"/api/v1/namespaces/tms/pods/{chosen.replica}")] * 2


async def test_what_was_taken_out_counts_as_routed_until_proxies_had_time(server: fake.Server) -> None:
    async with support.opened(support.options(settle_s=1.0), server.kubeconfig) as runs:
        chosen = await worker(runs)
        await runs.route([route(LEASE, chosen)])
        await runs.route([route(LEASE)])
        labels = server.cluster.find("pods", chosen.replica)["metadata"]["labels"]
        assert names.serving_label(LEASE) not in labels
        assert runs.routed(chosen) == {LEASE}
        await support.until(runs, lambda: not runs.routed(chosen))


async def test_what_endpoints_still_lead_to_counts_as_routed(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    chosen = await worker(runs)
    await runs.route([route(LEASE, chosen)])
    await support.until(runs, lambda: bool(runs._view.reached.reaching(chosen.replica)))
    server.cluster.hold_slices = True
    await runs.route([route(LEASE)])
    settled = max(runs._router._settling[chosen.replica].values())
    await support.until(runs, lambda: runs._clock.now() >= settled)
    assert runs.routed(chosen) == {LEASE}
    server.cluster.release_slices()
    await support.until(runs, lambda: not runs.routed(chosen))


async def test_a_label_without_its_service_leads_nobody(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    chosen = await worker(runs)
    server.cluster.refusals["services"] = fake.Refusal(500, "InternalError", "no")
    with pytest.raises(errors.Unavailable):
        await runs.route([route(LEASE, chosen)])
    assert names.serving_label(LEASE) in server.cluster.find("pods", chosen.replica)["metadata"]["labels"]
    assert not runs.routed(chosen)
    server.cluster.refusals.clear()
    await runs.route([route(LEASE, chosen)])
    await support.until(runs, lambda: runs.routed(chosen) == {LEASE})


def test_a_grace_period_in_which_nobody_can_leave_is_warned_of() -> None:
    options = support.options()
    least_s = pod.least_grace_s(options)
    long = dataclasses.replace(options.profiles["default"], termination_grace_s=least_s)
    short = dataclasses.replace(long, termination_grace_s=least_s - 1)
    with structlog.testing.capture_logs() as said:
        backend_module._warn_of_short_graces(dataclasses.replace(options, profiles={"default": short, "long": long}))
    assert [each["profile"] for each in said] == ["default"]


async def test_services_that_nobody_wants_go(server: fake.Server, runs: backend_module.KubernetesBackend) -> None:
    await runs.route([route(LEASE, name=True)])
    assert len(server.cluster.names("services")) == 4
    await runs.route([route(LEASE)])
    assert server.cluster.names("services") == [LEASE, f"{LEASE}-headless"]
    await support.until(runs, lambda: len(runs._view.all(kinds.SERVICES)) == 2)
    await runs.route([])
    assert server.cluster.names("services") == []


async def test_a_retired_group_leaves_nothing(server: fake.Server, runs: backend_module.KubernetesBackend) -> None:
    server.cluster.put("nodes", node())
    await runs.launch(dataclasses.replace(support.spec(), scaling=support.SCALING))
    await runs.retire(GROUP)
    for plural in ("deployments", "secrets", "horizontalpodautoscalers", "pods", "poddisruptionbudgets"):
        assert server.cluster.names(plural) == []


@pytest.mark.parametrize("kind", ["secrets", "deployments"])
async def test_an_interrupted_launch_is_seen_and_finished(
    server: fake.Server, runs: backend_module.KubernetesBackend, kind: str
) -> None:
    server.cluster.refusals[kind] = fake.Refusal(500, "InternalError", "no")
    with pytest.raises(errors.Unavailable):
        await runs.launch(support.spec())
    server.cluster.refusals.clear()
    found = await support.observed(runs)
    assert (found is not None) == (kind == "deployments")
    assert runs.differs(support.spec()) == (kind == "deployments")
    await runs.launch(support.spec())
    assert not runs.differs(support.spec())


async def test_history_that_is_gone_is_listed_again(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    await worker(runs)
    server.cluster.restart(down=True)
    server.cluster.objects.pop(("deployments", "tms", GROUP))
    server.cluster.compact()
    server.cluster.restart(down=False)
    await support.until(runs, lambda: runs.differs(support.spec()))
    listed = [path for method, path in server.cluster.requests if method == "GET" and path.endswith("deployments")]
    assert len(listed) > 1


async def test_an_api_server_that_is_away_is_told_and_heard_again(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    await worker(runs)
    server.cluster.restart(down=True)
    with pytest.raises(errors.Unavailable):
        await runs.launch(dataclasses.replace(support.spec(), replicas=2))
    assert await support.observed(runs) is not None
    server.cluster.restart(down=False)
    server.cluster.kill_worker(GROUP)
    await until_restarted(runs)


@pytest.mark.parametrize(
    "words", ['{"type": "MODIFIED", "obj', "[]\n", '{"type": "ADDED"}\n', '{"type": "ADDED", "object": {}}\n', "\0\n"]
)
async def test_whatever_a_watch_says_at_its_end_the_cluster_is_heard_on(
    server: fake.Server, runs: backend_module.KubernetesBackend, words: str
) -> None:
    await worker(runs)
    server.cluster.last_words = words
    server.cluster.restart(down=False)
    server.cluster.kill_worker(GROUP)
    await until_restarted(runs)


async def test_a_line_of_a_log_that_does_not_end_comes_in_pieces(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    pod = (await worker(runs)).replica
    endless = "0123456789abcdef" * 2**18
    server.cluster.say(pod, "worker", endless)
    pieces = [each.text async for each in runs.logs(GROUP, 1, follow=False) if each.source == "worker"]
    assert "".join(pieces) == endless
    assert max(map(len, pieces)) <= len(endless) // 4


async def test_an_api_server_that_never_answers_fails_the_start(server: fake.Server) -> None:
    server.cluster.restart(down=True)
    with pytest.raises(errors.Unavailable):
        async with support.opened(support.options(sync_bound_s=0.2), server.kubeconfig):
            pass


async def test_a_missing_right_fails_the_start_by_name(server: fake.Server) -> None:
    server.cluster.denied |= {("patch", "pods"), ("get", "pods/log")}
    with pytest.raises(errors.PermissionDenied, match=r"pods \(patch\), pods/log \(get\)"):
        async with support.opened(support.options(), server.kubeconfig):
            pass


async def test_a_kubeconfig_that_is_none_is_refused(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(errors.FailedPrecondition, match="kubeconfig"):
            async with support.opened(support.options(), path):
                pass


async def test_a_refused_service_is_told_and_the_rest_is_made(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    server.cluster.refusals["services"] = fake.Refusal(403, "Forbidden", "exceeded quota: services")
    troubles = await runs.route([route(LEASE)])
    assert troubles[desired.lease_owner(LEASE)].reason == "QuotaExceeded"


async def test_many_who_are_refused_take_no_turn_from_others(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    server.cluster.refusals["services"] = fake.Refusal(403, "Forbidden", "exceeded quota: services")
    ready = ids.WorkerId(GROUP, ids.ReplicaId("pod"))
    wanted = [route(ids.LeaseId(f"l-{number:016x}"), ready) for number in range(3 * router._NEW_AT_ONCE)]
    troubles = [len(await runs.route(wanted)) for _ in range(3)]
    assert troubles == [router._NEW_AT_ONCE, 2 * router._NEW_AT_ONCE, 3 * router._NEW_AT_ONCE]


async def test_shapes_that_no_node_has_are_warned_of_and_refused_only_when_strict(server: fake.Server) -> None:
    asked = resources.WorkerSpec(profile="full", resources=resources.Resources(gpus=2))
    server.cluster.put("nodes", node(nvidia_com_gpu="1"))
    async with support.opened(support.options(), server.kubeconfig) as runs:
        found = runs.warn(asked)
        assert found is not None
        assert "nvidia.com/gpu" in found.message
        assert runs.refuse(asked) is None
        assert runs.warn(resources.WorkerSpec()) is None
    async with support.opened(support.options(strict=True), server.kubeconfig) as strict:
        assert (strict.refuse(asked) or "").startswith("profile: ")
        with pytest.raises(errors.FailedPrecondition, match="nvidia"):
            await strict.launch(dataclasses.replace(support.spec(), worker=asked))


async def test_nodes_are_read_where_that_is_wanted_and_strict_never_does_without(server: fake.Server) -> None:
    async with support.opened(support.options(watch_nodes=False), server.kubeconfig) as blind:
        assert blind.warn(resources.WorkerSpec()) is None
    assert not [path for _, path in server.cluster.requests if path.endswith("/nodes")]
    server.cluster.denied.add(("watch", "nodes"))
    async with support.opened(support.options(), server.kubeconfig) as unable:
        assert unable.warn(resources.WorkerSpec()) is None
    with pytest.raises(errors.PermissionDenied, match=r"kubernetes\.strict: .* nodes"):
        async with support.opened(support.options(strict=True), server.kubeconfig):
            pass


async def test_a_cordoned_node_restarts_the_rollout_once(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    chosen = await worker(runs)
    cordoned_at = "2999-01-01T00:00:00Z"
    server.cluster.put("nodes", node(cordoned_at=cordoned_at))
    await support.until(runs, lambda: chosen.replica not in runs._view.all(kinds.PODS))
    template = server.cluster.find("deployments", GROUP)["spec"]["template"]
    assert template["metadata"]["annotations"][names.MOVED_AT] == "node-1@2999-01-01T00:00:00+00:00"
    assert not runs.differs(support.spec())
    patches = [each for each in server.cluster.writes() if each[1].endswith(f"deployments/{GROUP}")]
    await runs.launch(support.spec())
    assert [each for each in server.cluster.writes() if each[1].endswith(f"deployments/{GROUP}")] == patches


async def test_pods_that_could_not_be_moved_in_time_are_deleted(
    server: fake.Server, runs: backend_module.KubernetesBackend
) -> None:
    await worker(runs)
    server.cluster.put("nodes", node(cordoned_at="2020-01-01T00:00:00Z"))
    async with asyncio.timeout(support.BOUND_S):
        steps = runs.watch()
        while not any(method == "DELETE" and "/pods/" in path for method, path in server.cluster.requests):
            await anext(steps)


async def test_the_wait_for_a_first_look_tells_why_it_failed(server: fake.Server) -> None:
    server.cluster.denied.add(("list", "pods"))
    with pytest.raises(errors.PermissionDenied, match=r"pods \(list\)"):
        async with support.opened(support.options(sync_bound_s=0.2), server.kubeconfig):
            pass

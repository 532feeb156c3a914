"""The API's own promises: repeatable creates, resumable watches, names, pages, refusals that name the field."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.tms.v1 import agent_pb2_grpc, common_pb2, lease_pb2, pool_pb2
from tests.support import server as servers
from tms_server.model import errors


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """Code and details with which a call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_the_same_request_answers_the_same_lease_and_another_one_is_refused(server: servers.Running) -> None:
    first = await server.create(request_id="r", labels={"a": "1", "b": "2"})
    again = await server.create(request_id="r", labels={"b": "2", "a": "1"})
    assert again.id == first.id
    code, details = await refused(server.create(request_id="r", labels={"a": "2"}))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert details.startswith("request_id")
    listed = await server.leases.List(lease_pb2.ListLeasesRequest())
    assert len(listed.leases) == 1


async def test_requests_that_race_make_one_lease(server: servers.Running) -> None:
    made = await asyncio.gather(*(server.create(request_id="r") for _ in range(20)))
    assert len({each.id for each in made}) == 1


async def test_a_wrong_field_is_named_with_its_remedy(server: servers.Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.create(servers.model("one"), servers.model("bad name"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = status_pb2.Status()
    told.ParseFromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert told.details[0].Unpack(info)
    assert told.details[1].Unpack(bad)
    assert info.reason == "InvalidField"
    assert bad.field_violations[0].field == "models[1].name"
    assert "give" in bad.field_violations[0].description


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"autoscaling": lease_pb2.Autoscaling(max_replicas=2)}, grpc.StatusCode.UNIMPLEMENTED, "autoscaling"),
        (
            {"dedicated": lease_pb2.DedicatedPlacement(replicas=2)},
            grpc.StatusCode.UNIMPLEMENTED,
            "dedicated.replicas",
        ),
        (
            {"dedicated": lease_pb2.DedicatedPlacement(worker=common_pb2.WorkerSpec(image="x"))},
            grpc.StatusCode.UNIMPLEMENTED,
            "dedicated.worker.image",
        ),
        (
            {"dedicated": lease_pb2.DedicatedPlacement(worker=common_pb2.WorkerSpec(command="sh"))},
            grpc.StatusCode.INVALID_ARGUMENT,
            "dedicated.worker.command",
        ),
        ({"pool": lease_pb2.PoolPlacement(pool="none")}, grpc.StatusCode.NOT_FOUND, "none"),
        ({"parent_id": "nobody"}, grpc.StatusCode.NOT_FOUND, "parent_id"),
        ({"namespace": "No!"}, grpc.StatusCode.INVALID_ARGUMENT, "namespace"),
        (
            {"times": lease_pb2.LeaseTimes(hold=duration_pb2.Duration(seconds=2**62))},
            grpc.StatusCode.INVALID_ARGUMENT,
            "times.hold",
        ),
    ],
)
async def test_what_cannot_be_is_refused_and_nothing_is_stored(
    server: servers.Running, fields: dict[str, Any], code: grpc.StatusCode, named: str
) -> None:
    answered, details = await refused(server.create(**fields))
    assert (answered, named in details) == (code, True), details
    assert not (await server.leases.List(lease_pb2.ListLeasesRequest())).leases


async def test_a_model_that_is_not_there_is_refused_at_once(server: servers.Running) -> None:
    server.shelf.refusals["model://shelf/secret"] = errors.PermissionDenied("no access to the bucket")
    code, details = await refused(server.create(servers.model("one", uri="model://nowhere/one")))
    assert (code, details.startswith("models[0].uri")) == (grpc.StatusCode.NOT_FOUND, True)
    code, _ = await refused(server.create(servers.model("secret")))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert not (await server.leases.List(lease_pb2.ListLeasesRequest())).leases


async def test_what_can_never_fit_fails_at_once_and_says_by_how_much(server: servers.Running) -> None:
    made = await server.create(servers.model("one", declared_bytes=2**31))
    failed = await server.until_state(made.id, lease_pb2.LEASE_STATE_FAILED)
    assert failed.end.reason == "CannotFit"
    assert "needs 2.0 GiB" in failed.end.message
    assert "1.0 GiB too few" in failed.end.message


async def test_a_dry_run_says_what_would_happen_and_stores_nothing(server: servers.Running) -> None:
    fits = await server.create(dry_run=True)
    placed = next(each for each in fits.conditions if each.type == "Placed")
    assert (fits.id, placed.status) == ("", True)
    never = await server.create(servers.model("one", declared_bytes=2**31), dry_run=True)
    placed = next(each for each in never.conditions if each.type == "Placed")
    assert (placed.status, placed.reason) == (False, "CannotFit")
    assert not (await server.leases.List(lease_pb2.ListLeasesRequest())).leases


async def test_a_watch_resumes_after_a_revision_and_misses_nothing(server: servers.Running) -> None:
    first = await server.active()
    listed = await server.leases.List(lease_pb2.ListLeasesRequest())
    second = await server.active(servers.model("two"))
    await server.release(first.id)
    await server.until_state(first.id, lease_pb2.LEASE_STATE_RELEASED)

    request = lease_pb2.WatchLeasesRequest(leases=[first.id, second.id], after_revision=listed.revision)
    seen: dict[str, Any] = {}
    revisions = []
    async for update in server.leases.Watch(request):
        seen[update.lease.id] = update.lease.state
        revisions.append(update.revision)
        if len(seen) == 2:
            break
    assert seen == {first.id: lease_pb2.LEASE_STATE_RELEASED, second.id: lease_pb2.LEASE_STATE_ACTIVE}
    assert revisions == sorted(revisions)
    assert revisions[0] > listed.revision


async def test_a_watch_of_ended_leases_ends_and_one_of_the_future_is_refused(server: servers.Running) -> None:
    active = await server.active()
    await server.release(active.id)
    ended = await server.until_state(active.id, lease_pb2.LEASE_STATE_RELEASED)
    told = [each.lease.state async for each in server.leases.Watch(lease_pb2.WatchLeasesRequest(leases=[active.id]))]
    assert told == [lease_pb2.LEASE_STATE_RELEASED]
    late = lease_pb2.WatchLeasesRequest(leases=[active.id], after_revision=ended.revision)
    assert [each async for each in server.leases.Watch(late)] == []
    future = server.leases.Watch(lease_pb2.WatchLeasesRequest(after_revision=10**9))
    assert (await refused(future.read()))[0] is grpc.StatusCode.OUT_OF_RANGE


async def test_acquire_follows_to_active_and_shows_the_load(server: servers.Running) -> None:
    server.sidecars.prepare(lambda sidecar: sidecar.hold("one"))
    states, loads = [], []
    async for update in server.leases.Acquire(lease_pb2.CreateLeaseRequest(models=[servers.model("one")])):
        states.append(update.lease.state)
        loads.append(update.lease.model_statuses[0].state)
        if loads[-1] == common_pb2.MODEL_STATE_LOADING:
            server.sidecars.of(update.lease.worker_group).finish("one")
    assert common_pb2.MODEL_STATE_LOADING in loads
    assert loads[-1] == common_pb2.MODEL_STATE_READY
    assert states[0] == lease_pb2.LEASE_STATE_PENDING
    assert states[-1] == lease_pb2.LEASE_STATE_ACTIVE


async def test_acquire_of_a_lease_that_fails_ends_with_it(server: servers.Running) -> None:
    server.sidecars.prepare(lambda sidecar: sidecar.fail("one"))
    request = lease_pb2.CreateLeaseRequest(models=[servers.model("one")])
    told = [update.lease async for update in server.leases.Acquire(request)]
    assert told[-1].state == lease_pb2.LEASE_STATE_FAILED


async def test_pages_cover_every_lease_once_newest_first(server: servers.Running) -> None:
    made = []
    for number in range(7):
        server.advance(seconds=1)
        made.append((await server.create(labels={"number": str(number)})).id)
    seen: list[str] = []
    token = ""
    while True:
        page = await server.leases.List(lease_pb2.ListLeasesRequest(page_size=3, page_token=token))
        seen += [each.id for each in page.leases]
        if not (token := page.next_page_token):
            break
    assert seen == made[::-1]
    code, details = await refused(server.leases.List(lease_pb2.ListLeasesRequest(page_token="nonsense")))
    assert (code, "page_token" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    one = await server.leases.List(lease_pb2.ListLeasesRequest(labels={"number": "3"}))
    assert [each.id for each in one.leases] == [made[3]]


async def test_names_point_at_living_leases_and_are_repointed_in_one_step(server: servers.Running) -> None:
    blue = await server.active(servers.model("one"), name="live")
    green = await server.active(servers.model("two"))
    assert blue.worker_group == green.worker_group
    before = await server.names.Set(lease_pb2.SetLeaseNameRequest(name="live", lease_id=blue.id))
    assert before.endpoint.host
    sidecar = server.sidecars.of(blue.worker_group)
    server.advance(seconds=1)

    pointed = await server.names.Set(lease_pb2.SetLeaseNameRequest(name="live", lease_id=green.id))
    assert pointed.lease_id == green.id
    assert pointed.endpoint == before.endpoint
    assert (await server.get("live")).id == green.id
    async with asyncio.timeout(servers.PATIENCE_S):
        while _models_at(sidecar, pointed.endpoint) != ["two"]:
            await server.get("live")

    code, _ = await refused(server.create(servers.model("three"), name="live"))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    await server.release(green.id)
    await server.until_state(green.id, lease_pb2.LEASE_STATE_RELEASED)
    taken = await server.create(servers.model("three"), name="live")
    assert list(taken.names) == ["live"]
    await server.names.Delete(lease_pb2.DeleteLeaseNameRequest(name="live"))
    assert (await refused(server.get("live")))[0] is grpc.StatusCode.NOT_FOUND


async def test_renew_moves_the_deadline_and_never_shortens_unless_asked(server: servers.Running) -> None:
    active = await server.active()
    longer = await server.leases.Renew(_renewal(active.id, 3600))
    assert longer.expires.remaining.seconds == 3600
    same = await server.leases.Renew(_renewal(active.id, 60))
    assert same.expires.remaining.seconds == 3600
    shorter = await server.leases.Renew(_renewal(active.id, 60, allow_shorten=True))
    assert shorter.expires.remaining.seconds == 600
    await server.release(active.id)
    assert (await refused(server.leases.Renew(_renewal(active.id, 60))))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_keep_alive_answers_each_lease_in_order_and_survives_a_bad_one(server: servers.Running) -> None:
    times = lease_pb2.LeaseTimes(renewal=lease_pb2.RENEWAL_KEEPALIVE, hold=duration_pb2.Duration(seconds=100))
    active = await server.active(times=times)
    server.advance(seconds=50)
    asked = [active.id, "nobody", active.id]
    answers = server.leases.KeepAlive(lease_pb2.KeepAliveRequest(lease=each) for each in asked)
    told = [each async for each in answers]
    assert [each.lease for each in told] == asked
    assert told[0].expires.remaining.seconds == 100
    assert "nobody" in told[1].error
    assert not told[2].error


async def test_release_again_answers_the_end_that_was(server: servers.Running) -> None:
    active = await server.active()
    await server.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=active.id, message="done"))
    ended = await server.until_state(active.id, lease_pb2.LEASE_STATE_RELEASED)
    again = await server.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=active.id, message="again"))
    assert again.end == ended.end
    assert (again.end.reason, again.end.message, again.end.actor) == ("Released", "done", "anonymous")


async def test_explain_names_the_rule_the_missing_bytes_and_the_nearest_fit(server: servers.Running) -> None:
    spec = pool_pb2.PoolSpec(worker=common_pb2.WorkerSpec(command="tms-worker"), max_workers=1)
    await server.pools.Create(pool_pb2.CreatePoolRequest(name="one", spec=spec))
    pool = lease_pb2.PoolPlacement(pool="one")
    holder = await server.active(servers.model("big", declared_bytes=2**30), pool=pool)
    waiting = await server.create(servers.model("more", declared_bytes=1000), pool=pool)
    await server.until(waiting.id, lambda lease: any(each.reason == "NoCapacity" for each in lease.conditions))
    why = await server.leases.Explain(lease_pb2.ExplainLeaseRequest(lease=waiting.id))
    verdict = why.workers[0]
    assert (verdict.rule, verdict.missing_bytes, list(verdict.held_by)) == ("Memory", 1000, [holder.id])
    assert why.nearest_fit == holder.worker_group


async def test_pools_are_idempotent_guarded_and_revoke_when_told(server: servers.Running) -> None:
    request = pool_pb2.CreatePoolRequest(
        name="mine", spec=pool_pb2.PoolSpec(worker=common_pb2.WorkerSpec(command="tms-worker"), min_workers=1)
    )
    made = await server.pools.Create(request)
    assert made.spec.max_workers == 4
    assert (await server.pools.Create(request)).created_at == made.created_at
    request.spec.min_workers = 2
    assert (await refused(server.pools.Create(request)))[0] is grpc.StatusCode.ALREADY_EXISTS
    request.spec.expiry = pool_pb2.EXPIRY_POLICY_LINGER
    assert (await refused(server.pools.Create(request)))[0] is grpc.StatusCode.UNIMPLEMENTED

    active = await server.active(pool=lease_pb2.PoolPlacement(pool="mine"))
    delete = pool_pb2.DeletePoolRequest(name="mine")
    assert (await refused(server.pools.Delete(delete)))[0] is grpc.StatusCode.FAILED_PRECONDITION
    delete.revoke_leases = True
    await server.pools.Delete(delete)
    ended = await server.until_state(active.id, lease_pb2.LEASE_STATE_REVOKED)
    assert ended.end.reason == "PoolDeleted"
    await server.idle()
    assert (await refused(server.pools.Get(pool_pb2.GetPoolRequest(name="mine"))))[0] is grpc.StatusCode.NOT_FOUND
    code, details = await refused(server.pools.Delete(pool_pb2.DeletePoolRequest(name="default", revoke_leases=True)))
    assert (code, "settings" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)


async def test_framework_classes_that_harm_each_other_get_workers_of_their_own(server: servers.Running) -> None:
    one = await server.active(servers.model("one"))
    two = await server.active(servers.model("two", framework="pytorch"))
    assert one.worker_group != two.worker_group
    never = await server.create(servers.model("one"), servers.model("two", framework="pytorch"))
    assert (await server.until_state(never.id, lease_pb2.LEASE_STATE_FAILED)).end.reason == "CannotFit"
    alone = await server.active(
        servers.model("one"),
        servers.model("two", framework="pytorch"),
        dedicated=lease_pb2.DedicatedPlacement(worker=common_pb2.WorkerSpec(command="tms-worker")),
    )
    assert alone.worker_group not in (one.worker_group, two.worker_group)


async def test_logs_of_the_worker_are_shown_and_refused_without_one(server: servers.Running) -> None:
    active = await server.active()
    lines = [each async for each in server.leases.Logs(lease_pb2.LeaseLogsRequest(lease=active.id))]
    assert {each.source for each in lines} == {"worker", "sidecar"}
    await server.release(active.id)
    await server.until_state(active.id, lease_pb2.LEASE_STATE_RELEASED)
    call = server.leases.Logs(lease_pb2.LeaseLogsRequest(lease=active.id))
    assert (await refused(call.read()))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_sidecar_with_another_token_or_of_no_group_is_turned_away(server: servers.Running) -> None:
    active = await server.active()
    spec = server.backend.spec(server.sidecars.of(active.worker_group).spec.group_id)
    for worker_id, token, code in (
        (spec.group_id, "wrong", grpc.StatusCode.UNAUTHENTICATED),
        ("w-nobody", spec.token, grpc.StatusCode.NOT_FOUND),
    ):
        metadata = (("tms-worker-id", worker_id), ("authorization", f"Bearer {token}"))
        call = agent_pb2_grpc.AgentsStub(server.channel).Connect(iter(()), metadata=metadata)
        assert (await refused(anext(aiter(call))))[0] is code
    assert (await server.get(active.id)).state == lease_pb2.LEASE_STATE_ACTIVE


async def test_health_and_reflection_answer(server: servers.Running) -> None:
    # The stubs of these two packages know neither their methods nor asyncio.
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service="tms.v1.Leases"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watched = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()
    reflection_stub: Any = reflection_pb2_grpc.ServerReflectionStub
    reflection = reflection_stub(server.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    async for told in reflection.ServerReflectionInfo(asked):
        names = {each.name for each in told.list_services_response.service}
        assert {"tms.v1.Leases", "tms.v1.Agents", "grpc.health.v1.Health"} <= names


def _renewal(lease_id: str, seconds: int, *, allow_shorten: bool = False) -> lease_pb2.RenewLeaseRequest:
    duration = duration_pb2.Duration(seconds=seconds)
    return lease_pb2.RenewLeaseRequest(lease=lease_id, duration=duration, allow_shorten=allow_shorten)


def _models_at(sidecar: Any, endpoint: common_pb2.Endpoint) -> list[str]:
    told = [list(each.models) for each in sidecar.desired.endpoints if each.endpoint == endpoint]
    return told[0] if told else []


async def test_a_lease_that_says_no_times_gets_those_of_the_settings(tmp_path: pathlib.Path) -> None:
    times = {"hold_s": 30, "activity_window_s": 20, "pending_timeout_s": 100, "max_lifetime_s": 3600}
    async with servers.running(tmp_path, lease_times=times) as server:
        made = (await server.create()).times
        said = (made.hold, made.activity_window, made.pending_timeout, made.max_lifetime)
        assert [span.seconds for span in said] == [30, 20, 100, 3600]
        own = lease_pb2.LeaseTimes(max_lifetime=duration_pb2.Duration(seconds=10))
        short = (await server.create(servers.model("two"), times=own)).times
        assert (short.hold.seconds, short.max_lifetime.seconds, short.activity_window.seconds) == (10, 10, 20)

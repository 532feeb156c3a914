"""What is kept, what is told, and how often a server was restarted."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from protos.tms.v1 import agent_pb2, common_pb2
from sidecar import activity, errors, health, report, state, usage, values, wire
from sidecar import desired as desired_state
from sidecar.desired import Phase
from sidecar.fetching import progress

SECRET = "do-not-write-this"
MODEL = agent_pb2.DesiredModel(
    name="digits",
    uri="s3://bucket/digits",
    files=[agent_pb2.SourceFile(path="1/model.onnx", size_bytes=5, version="v")],
    source_digest="abc",
    s3=agent_pb2.S3Access(endpoint_url="http://s3", access_key_id="id", secret_access_key=SECRET, session_token=SECRET),
)
DESIRED = agent_pb2.Desired(epoch=1, generation=7, models=[MODEL])
WORKER = values.Endpoint("127.0.0.1", 1, 2, 3)


def test_the_state_on_disk_holds_all_but_credentials(tmp_path: pathlib.Path) -> None:
    memory = state.State(tmp_path)
    memory.save_desired(DESIRED)

    written = "".join(path.read_text() for path in tmp_path.iterdir())
    restored = wire.desired(state.State(tmp_path).desired())

    assert SECRET not in written
    assert "access" not in written.lower()
    assert restored == wire.desired(DESIRED)
    assert restored.models[0].access is None
    assert DESIRED.models[0].s3.secret_access_key == SECRET


def test_a_secret_shows_in_no_representation() -> None:
    assert SECRET not in repr(wire.desired(DESIRED))


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"epoch": "x"}', '[{"name": "x"}]'])
def test_a_broken_file_counts_as_none(tmp_path: pathlib.Path, broken: str) -> None:
    memory = state.State(tmp_path)
    for name in ("desired.json", "loaded.json"):
        (tmp_path / name).write_text(broken)

    assert memory.desired() == agent_pb2.Desired()
    assert memory.loaded() == {}


def test_what_was_loaded_is_remembered(tmp_path: pathlib.Path) -> None:
    loaded = {"a": values.ModelKey("a", "one", ""), "b": values.ModelKey("b", "two", "three")}
    state.State(tmp_path).save_loaded(loaded)

    assert state.State(tmp_path).loaded() == loaded


def seen(held: dict[str, desired_state.Held], **changes: object) -> report.Seen:
    fields: dict[str, Any] = {
        "desired": wire.desired(DESIRED),
        "held": held,
        "gone": {},
        "at_ms": 1_700_000_000_123,
        "server_ready": True,
        "server_restarts": 2,
        "activities": {},
        "activity_known": True,
        "forwarded": {},
        "reading": usage.Reading(at_ms=1_700_000_000_123),
        "trouble": None,
        "fetches": {},
        "endpoints": (WORKER,),
        "unopened": {},
        "worker": WORKER,
        "cache_bytes": 12,
        **changes,
    }
    return report.Seen(**fields)


def held(phase: Phase, failure: desired_state.Failure | None = None) -> desired_state.Held:
    return desired_state.Held(wire.desired(DESIRED).models[0].key, phase, failure)


def test_a_wanted_model_that_has_not_begun_is_pending() -> None:
    told = report.build(seen({}))

    assert [(each.name, each.state, each.total_bytes) for each in told.models] == [
        ("digits", common_pb2.MODEL_STATE_PENDING, 5)
    ]
    assert (told.epoch, told.generation, told.server_restarts) == (1, 7, 2)
    assert told.at.ToMilliseconds() == 1_700_000_000_123


def test_an_address_that_cannot_be_had_is_told_with_the_reason() -> None:
    told = report.build(seen({}, endpoints=(), unopened={WORKER: "Address already in use"}))

    (problem,) = told.unopened
    assert problem.endpoint == wire.endpoint(WORKER)
    assert (problem.reason, problem.message) == ("AddressUnavailable", "Address already in use")
    assert list(told.endpoints) == []


def test_a_ready_model_tells_its_use() -> None:
    used = activity.Activity(activity.Counters(inference_count=3, queue_ns=4, compute_ns=5), 1_700_000_000_000)

    [model] = report.build(
        seen({"digits": held(Phase.READY)}, activities={"digits": used}, forwarded={"digits": 2})
    ).models

    assert model.state == common_pb2.MODEL_STATE_READY
    assert (model.inference_count, model.queue_ns, model.compute_ns, model.in_flight) == (3, 4, 5, 2)
    assert model.last_inference.ToMilliseconds() == 1_700_000_000_000
    assert (model.fetched_bytes, model.total_bytes) == (5, 5)


def test_nothing_is_called_ready_while_the_server_is_down() -> None:
    [model] = report.build(seen({"digits": held(Phase.READY)}, server_ready=False)).models

    assert (model.state, model.reason) == (common_pb2.MODEL_STATE_PENDING, "ServerDown")


def test_a_failure_is_told_in_full() -> None:
    failure = desired_state.Failure("StoreUnavailable", "no answer", retryable=True)

    [model] = report.build(
        seen({"digits": held(Phase.WAITING, failure)}, fetches={"digits": progress.Seen(2, 5, 1)})
    ).models

    assert model.state == common_pb2.MODEL_STATE_FAILED
    assert (model.reason, model.message, model.retryable) == ("StoreUnavailable", "no answer", True)


def test_a_leaving_model_is_listed_until_it_is_gone() -> None:
    nothing = values.Desired(epoch=1, generation=8)

    [draining] = report.build(seen({"digits": held(Phase.DRAINING)}, desired=nothing)).models
    [gone] = report.build(seen({}, desired=nothing, gone={"digits": held(Phase.READY).key})).models

    assert draining.state == common_pb2.MODEL_STATE_DRAINING
    assert gone.state == common_pb2.MODEL_STATE_UNLOADED
    assert report.build(seen({}, desired=nothing)).models == []


REFUSED, SILENT = errors.ServerGone("no", refused=True), errors.ServerGone("late")


def test_one_refusal_is_no_proof_and_two_are() -> None:
    watched = health.Health()
    assert not watched.answered(empty=True, lost=False)

    assert not watched.missed(REFUSED)
    assert watched.up
    assert watched.missed(REFUSED)
    assert not watched.up
    assert not watched.missed(REFUSED)


def test_three_silences_in_a_row_are_proof() -> None:
    watched = health.Health()
    watched.answered(empty=False, lost=False)
    assert [watched.missed(SILENT), watched.missed(SILENT)] == [False, False]
    watched.answered(empty=False, lost=False)

    assert [watched.missed(SILENT) for _ in range(3)] == [False, False, True]


def test_a_restart_is_an_empty_server_that_was_not_so_before() -> None:
    watched = health.Health()
    watched.answered(empty=True, lost=False)
    assert watched.restarts == 0

    assert watched.answered(empty=True, lost=True)
    watched.missed(REFUSED)
    watched.missed(REFUSED)
    assert not watched.answered(empty=False, lost=False)
    assert watched.restarts == 1

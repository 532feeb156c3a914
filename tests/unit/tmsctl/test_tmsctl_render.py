"""Answers look alike every time: tables align, json has every field, nothing steers the terminal."""

from __future__ import annotations

import io
import json
import sys

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from protos.tms.v1 import common_pb2, lease_pb2, pool_pb2
from tmsctl import options, progress, render

LEASE = lease_pb2.Lease(
    id="l-1",
    namespace="default",
    state=lease_pb2.LEASE_STATE_ACTIVE,
    models=[common_pb2.ModelReference(name="digits", uri="model://r/digits")],
    pool=lease_pb2.PoolPlacement(pool="small"),
    names=["digits"],
    endpoint=common_pb2.Endpoint(host="127.64.0.2", http_port=8000, grpc_port=8001, metrics_port=8002),
    model_statuses=[
        common_pb2.ModelStatus(
            name="digits", state=common_pb2.MODEL_STATE_READY, fetched_bytes=1536, total_bytes=1536, inference_count=3
        )
    ],
    conditions=[common_pb2.Condition(type="Serving", status=False, reason="WorkerLost", message="it is revived")],
)
LEASE.expires.remaining.FromSeconds(570)


def test_columns_align_and_empty_cells_are_seen() -> None:
    assert render.table(("A", "LONG"), [("xxxx", ""), ("y", "z")]) == "A     LONG\nxxxx  -\ny     z"


@hypothesis.given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_a_table_has_one_line_for_each_row(rows: list[tuple[str, str]]) -> None:
    shown = render.table(("A", "B"), rows)
    assert len(shown.split("\n")) == len(rows) + 1


def test_json_has_every_field_under_its_api_name_and_reads_back() -> None:
    tree = json.loads(render.answer(LEASE, options.Output.JSON, table="", names=[]))
    assert tree["state"] == "LEASE_STATE_ACTIVE"
    assert tree["model_statuses"][0]["inference_count"] == "3"
    assert tree["priority"] == 0
    assert tree["labels"] == {}
    assert tree["expires"]["remaining"] == "570s"


def test_yaml_says_the_same_as_json() -> None:
    shown = {form: render.answer(LEASE, form, table="", names=[]) for form in options.Output}
    assert yaml.safe_load(shown[options.Output.YAML]) == json.loads(shown[options.Output.JSON])


def test_names_are_one_a_line() -> None:
    assert render.answer(LEASE, options.Output.NAME, table="t", names=["a", "b"]) == "a\nb"


def test_a_stream_is_one_object_a_line() -> None:
    update = lease_pb2.LeaseUpdate(lease=LEASE, revision=7)
    shown = render.line(update, options.Output.JSON, table="", name="l-1")
    assert "\n" not in shown
    assert json.loads(shown)["revision"] == "7"
    document = render.line(update, options.Output.YAML, table="", name="l-1")
    assert document.startswith("---\n")


def test_the_list_shows_place_endpoint_reason_and_deadline() -> None:
    row = render.leases([LEASE]).splitlines()[1].split("  ")
    assert [cell.strip() for cell in row] == [
        "l-1",
        "ACTIVE",
        "WorkerLost",
        "digits",
        "digits",
        "pool/small",
        "http://127.64.0.2:8000",
        "in 9m30s",
    ]


def test_the_status_shows_models_and_conditions() -> None:
    shown = render.lease(LEASE)
    assert "gRPC       127.64.0.2:8001" in shown
    assert "1.5 KiB/1.5 KiB" in shown
    assert "it is revived" in shown


def test_an_ipv6_endpoint_is_bracketed() -> None:
    assert render.host(common_pb2.Endpoint(host="::1")) == "[::1]"


def test_an_ended_lease_says_who_and_why() -> None:
    ended = lease_pb2.Lease(id="l-2", state=lease_pb2.LEASE_STATE_FAILED)
    ended.end.reason, ended.end.message, ended.end.actor = "CannotFit", "needs 3 GiB", "placer"
    assert "by placer: needs 3 GiB" in render.lease(ended)
    assert progress.headline(ended) == "l-2 FAILED (CannotFit: needs 3 GiB)"


def test_a_watch_tells_how_far_fetches_are_and_how_long_they_take() -> None:
    lease = lease_pb2.Lease(id="l-1", state=lease_pb2.LEASE_STATE_LOADING)
    known = lease.model_statuses.add(name="a", state=common_pb2.MODEL_STATE_FETCHING, fetched_bytes=2**30)
    known.total_bytes, known.fetch_bytes_per_s = 2**32, 2**28
    known.fetch_remaining.FromSeconds(12)
    lease.model_statuses.add(name="b", state=common_pb2.MODEL_STATE_FETCHING, total_bytes=2**20)
    lease.model_statuses.add(name="c", state=common_pb2.MODEL_STATE_READY, total_bytes=2**20)

    assert progress.watched(lease) == "l-1 LOADING; a 1.0 GiB of 4.0 GiB, 256 MiB/s, 12s left; b 0 B of 1.0 MiB"


def test_an_explanation_names_rule_and_missing_bytes() -> None:
    verdict = lease_pb2.WorkerVerdict(worker_group="g-1", rule="Memory", missing_bytes=2**20, held_by=["l-1"])
    said = lease_pb2.ExplainLeaseResponse(summary="no room", workers=[verdict], smallest_change="free 1 MiB")
    shown = render.explanation(said)
    assert "1.0 MiB" in shown
    assert "Memory" in shown
    assert "free 1 MiB" in shown


def test_pools_and_workers_are_listed() -> None:
    pool = pool_pb2.Pool(name="p", spec=pool_pb2.PoolSpec(min_workers=1, max_workers=3), workers=2)
    assert "2 of 1 to 3" in render.pools([pool])
    worker = pool_pb2.Worker(id="g-1", state=pool_pb2.WORKER_STATE_LOST, restarts=2)
    assert "LOST" in render.workers([worker])
    assert "(dedicated)" in render.workers([worker])


def test_control_characters_of_others_are_shown_not_sent() -> None:
    hostile = lease_pb2.Lease(id="l-1\x1b[2J", names=["a\nb"])
    assert "\x1b" not in render.leases([hostile])
    assert len(render.leases([hostile]).splitlines()) == 2


def test_lines_are_printed_for_changes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    pending = lease_pb2.Lease(id="l-1", state=lease_pb2.LEASE_STATE_PENDING)
    with progress.reporter() as reporter:
        for lease in (pending, pending, LEASE):
            reporter.update(lease)
    assert shown.getvalue().splitlines() == [
        "l-1 PENDING",
        "l-1 ACTIVE (WorkerLost: it is revived)",
        "  digits READY 1.5 KiB",
    ]


def test_bars_are_drawn_for_every_state_of_a_lease() -> None:
    lease = lease_pb2.Lease(id="l-1", state=lease_pb2.LEASE_STATE_LOADING)
    lease.model_statuses.add(name="[red]m", state=common_pb2.MODEL_STATE_FETCHING, fetched_bytes=1, total_bytes=4)
    with progress.Bars() as bars:
        for each in (lease_pb2.Lease(id="l-1"), lease, LEASE):
            bars.update(each)
        described = {task.description: (task.completed, task.total) for task in bars._progress.tasks}
    assert described == {
        "l-1 ACTIVE (WorkerLost: it is revived)": (1, 1),
        "  [red]m": (1, 4),
        "  digits": (1536, 1536),
    }


def test_the_reason_of_a_lease_is_what_stands_against_it() -> None:
    serving = common_pb2.Condition(type="Serving", status=True, reason="Serving")
    passed = common_pb2.Condition(type="Warning", status=False, reason="Passed")
    warned = common_pb2.Condition(type="Warning", status=True, reason="NoSuchNode", message="none matches")
    lost = common_pb2.Condition(type="Serving", status=False, reason="WorkerLost")
    assert render.reason(lease_pb2.Lease(conditions=[serving, passed])) == ""
    assert render.why(lease_pb2.Lease(conditions=[serving, warned])) == "none matches"
    assert render.reason(lease_pb2.Lease(conditions=[passed, lost])) == "WorkerLost"

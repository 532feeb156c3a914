"""Traces: settings and their inheritance, sampling, files."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import batching, border, spec, work
from gpu_worker.engine import trace as engine_trace
from gpu_worker.tracing import settings as trace_settings
from gpu_worker.tracing import tracer, writer

MODEL = spec.ModelSpec(
    name="m",
    version="3",
    platform="onnxruntime_onnx",
    max_batch_size=0,
    inputs=(spec.TensorSpec("A", "FP32", (2,)),),
    outputs=(),
    batching=batching.Config(max_batch_size=0, dynamic=False),
)


def started(tmp_path: pathlib.Path, **fields: Any) -> tracer.Tracer:
    settings: dict[str, Any] = {"levels": ("TIMESTAMPS",), "rate": 1, "file": str(tmp_path / "trace.json")} | fields
    return tracer.Tracer(trace_settings.Settings(**settings))


def ask(tracing: tracer.Tracer, count: int = 1, model: str = "m", data: bytes = bytes(8)) -> None:
    """Requests that are answered at once, in a front's place."""
    for number in range(count):
        tensor = border.Tensor("A", "FP32", (2,), data)

        def reply(answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None: ...

        request = border.InferRequest(model, "", str(number), [tensor], [], {}, reply)
        request.received = border.Received("HTTP", 5, 6)
        each = work.Work(request, asyncio.new_event_loop(), 7, (tensor,), None, 1, (), None, work.NOTHING, work.NOTHING)
        each.loop.close()
        if tracing.on:
            tracing.begin(dataclasses.replace(MODEL, name=model), each)
        request.reply(border.InferResponse(model, "3", str(number), []))


def written(tmp_path: pathlib.Path) -> dict[str, list[str]]:
    """Request ids by file."""
    return {
        path.name: [record["request_id"] for record in json.loads(path.read_text()) if "request_id" in record]
        for path in sorted(tmp_path.iterdir())
    }


def test_a_file_holds_all_traces_as_one_array(tmp_path: pathlib.Path) -> None:
    tracing = started(tmp_path, levels=("TIMESTAMPS", "TENSORS"))
    ask(tracing, data=bytes(4) + b"\0\0\x80?")
    tracing.close()
    records = json.loads((tmp_path / "trace.json").read_text())
    assert records[0] == {"id": 1, "model_name": "m", "model_version": 3, "request_id": "0"}
    events = [record["timestamps"][0] for record in records if "timestamps" in record]
    names = (
        "HTTP_RECV_START HTTP_RECV_END REQUEST_START QUEUE_START INFER_RESPONSE_COMPLETE HTTP_SEND_START HTTP_SEND_END"
    )
    assert [event["name"] for event in events] == [*names.split(), "REQUEST_END"]
    assert [event["ns"] for event in events][:3] == [5, 6, 7]
    assert records[-1] == {
        "id": 1,
        "activity": "TENSOR_QUEUE_INPUT",
        "tensor": {"name": "A", "data": "0.0,1.0", "shape": "2", "dtype": "FP32"},
    }


@pytest.fixture
def room() -> Iterator[int]:
    """No file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield 65536
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("frequency", [0, 5, 1000])
def test_where_there_is_no_room_what_was_written_stays_and_the_rest_is_counted(
    tmp_path: pathlib.Path, room: int, frequency: int
) -> None:
    tracing = started(tmp_path, log_frequency=frequency, levels=("TIMESTAMPS", "TENSORS"))
    with structlog.testing.capture_logs() as logs:
        ask(tracing, 2000)
        tracing.close()

    found = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    told = {name: sum("model_name" in record for record in records) for name, records in found.items()}
    lost = 2000 - sum(told.values())
    if frequency == 5:
        assert told == {f"trace.json.{index}": 5 for index in range(400)}
        assert (lost, logs) == (0, [])
        return
    assert list(told) == ["trace.json.0" if frequency else "trace.json"]
    assert lost > 0
    assert (tmp_path / next(iter(told))).stat().st_size <= room
    assert logs[-1]["count"] == lost
    assert len(logs) <= 13, "the log does not grow with what is lost"


@pytest.mark.parametrize(
    ("fields", "count", "files"),
    [
        ({"rate": 3}, 7, {"trace.json": ["2", "5"]}),
        ({"count": 2}, 5, {"trace.json.0": ["0", "1"]}),
        ({"log_frequency": 2}, 5, {"trace.json.0": ["0", "1"], "trace.json.1": ["2", "3"], "trace.json.2": ["4"]}),
        ({"log_frequency": 2, "count": 3}, 9, {"trace.json.0": ["0", "1"], "trace.json.1": ["2"]}),
        ({"count": 0}, 3, {}),
        ({"rate": 0}, 3, {}),
        ({"levels": ()}, 3, {}),
    ],
)
def test_rate_count_and_frequency(
    tmp_path: pathlib.Path, fields: dict[str, Any], count: int, files: dict[str, list[str]]
) -> None:
    tracing = started(tmp_path, **fields)
    ask(tracing, count)
    tracing.close()
    assert written(tmp_path) == files


def test_a_model_has_settings_of_its_own_and_the_global_ones_for_the_rest(tmp_path: pathlib.Path) -> None:
    tracing = started(tmp_path, levels=())
    tracing.update("m", {"trace_level": ["TIMESTAMPS"], "trace_count": ["1"]})
    ask(tracing, 3)
    ask(tracing, 3, "other")
    assert tracing.settings("m").told()["trace_count"] == ["0"]
    assert tracing.settings("other").told()["trace_level"] == ["OFF"]
    tracing.update("", {"trace_rate": ["2"]})
    assert tracing.settings("m").told()["trace_rate"] == ["2"]
    assert tracing.settings("m").told()["trace_count"] == ["0"]
    tracing.update("m", {"trace_rate": ["9"]})
    tracing.update("", {"trace_rate": None, "log_frequency": ["4"]})
    assert (tracing.settings("").rate, tracing.settings("m").rate, tracing.settings("m").log_frequency) == (1, 9, 4)
    tracing.update("m", dict.fromkeys(("trace_level", "trace_count", "trace_rate")))
    assert tracing.settings("m") == tracing.settings("")
    assert not tracing.on
    tracing.close()
    assert written(tmp_path) == {"trace.json.0": ["0"]}


def test_a_file_is_whole_once_its_settings_are_replaced(tmp_path: pathlib.Path) -> None:
    tracing = started(tmp_path, log_frequency=10)
    ask(tracing, 3)
    tracing.update("", {"trace_level": ["OFF"]})
    ask(tracing, 3)
    tracing.close()
    assert written(tmp_path) == {"trace.json.0": ["0", "1", "2"]}


def test_what_cannot_be_written_harms_nobody(tmp_path: pathlib.Path) -> None:
    tracing = started(tmp_path)
    (tmp_path / "trace.json.part").mkdir()
    ask(tracing, 2)
    ask(tracing, 1, data=bytes(7))
    tracing.close()
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json.part"]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (
            {"trace_file": ["x"]},
            border.ErrorKind.UNSUPPORTED,
            "file location can not be updated through network protocol",
        ),
        ({"trace_file": None}, border.ErrorKind.UNSUPPORTED, "file location"),
        ({"trace_mode": ["opentelemetry"]}, border.ErrorKind.UNSUPPORTED, "trace mode can not be updated"),
        ({"trace_rate": ["x"]}, border.ErrorKind.INVALID_ARGUMENT, "Unable to parse 'trace_rate', got: x"),
        ({"trace_rate": ["1", "2"]}, border.ErrorKind.INVALID_ARGUMENT, "expect only 1 value, got: 2"),
        ({"trace_rate": ["-1"]}, border.ErrorKind.INVALID_ARGUMENT, "Unable to parse 'trace_rate', got: -1"),
        ({"trace_count": ["-2"]}, border.ErrorKind.INVALID_ARGUMENT, "out of range [ -1, 4294967295 ], got: -2"),
        ({"log_frequency": ["4294967296"]}, border.ErrorKind.INVALID_ARGUMENT, "out of range"),
        ({"trace_level": ["LOUD"]}, border.ErrorKind.INVALID_ARGUMENT, "'trace_level', got: LOUD"),
        (
            {"trace_level": ["OFF", "TENSORS"]},
            border.ErrorKind.INVALID_ARGUMENT,
            "Expect only one trace level 'OFF' is specified",
        ),
        ({"trace_speed": ["1"]}, border.ErrorKind.INVALID_ARGUMENT, "unknown trace setting 'trace_speed'"),
    ],
)
def test_what_cannot_be_set_is_refused_whole(
    tmp_path: pathlib.Path, changes: trace_settings.Changes, kind: border.ErrorKind, words: str
) -> None:
    tracing = started(tmp_path)
    before = tracing.settings("m")
    with pytest.raises(border.InferenceError, match=re.escape(words)) as caught:
        tracing.update("m", {"log_frequency": ["3"], **changes})
    assert caught.value.kind is kind
    assert tracing.settings("m") == before


NAMES = st.sampled_from(["trace_file", "trace_level", "trace_rate", "trace_count", "log_frequency", "trace_mode", "x"])
VALUES = st.none() | st.lists(
    st.sampled_from(["OFF", "TIMESTAMPS", "TENSORS", "MAX"]) | st.integers(-3, 2**33).map(str) | st.text(max_size=4),
    max_size=3,
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_change_is_made_whole_or_refused(changes: dict[str, Any]) -> None:
    try:
        found = trace_settings.changed({}, changes)
    except border.InferenceError:
        return
    told = trace_settings.Settings(**found).told()
    for name, values in changes.items():
        if values is not None and name != "trace_level":
            assert [int(each) for each in told[name]] == [int(each) for each in values]


@given(st.binary(max_size=16), st.sampled_from(["BF16", "FP16", "BOOL", "UINT8", "INT64"]))
def test_tensors_of_every_datatype_are_shown_as_text(data: bytes, datatype: str) -> None:
    size = {"BF16": 2, "FP16": 2, "BOOL": 1, "UINT8": 1, "INT64": 8}[datatype]
    whole = data[: len(data) // size * size]
    tensor = border.Tensor("A", datatype, (len(whole) // size,), whole)
    found = engine_trace.Trace(
        id=1, model="m", version="1", request_id="", timestamps=False, tensors=True, done=lambda _: None
    )
    found.show("TENSOR_QUEUE_INPUT", [tensor])
    (_, record) = writer.records(found)
    assert len([each for each in record["tensor"]["data"].split(",") if each]) == len(whole) // size


def test_levels_need_a_file_to_go_to() -> None:
    tracing = tracer.Tracer(trace_settings.Settings())
    with pytest.raises(border.InferenceError, match="trace file name is not given"):
        tracing.update("m", {"trace_level": ["TIMESTAMPS"]})
    tracing.update("", {"trace_level": ["OFF"], "trace_rate": ["3"]})
    assert tracing.settings("m").told()["trace_rate"] == ["3"]
    tracing.close()


def test_spans_without_the_sdk_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(border.InferenceError, match="needs the extra worker-trace") as caught:
        tracer.Tracer(trace_settings.Settings(mode="opentelemetry", levels=("TIMESTAMPS",)))
    assert caught.value.kind is border.ErrorKind.UNSUPPORTED

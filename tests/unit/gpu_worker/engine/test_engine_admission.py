"""What is remembered of earlier requests changes no answer."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import admission, batching, border, regions, spec, validation, work

LOOP = asyncio.new_event_loop()
LOOP.close()
SHARED = regions.Regions()
MODEL = spec.ModelSpec(
    name="m",
    version="1",
    platform="onnxruntime_onnx",
    max_batch_size=3,
    inputs=(
        spec.TensorSpec("A", "FP32", (2,)),
        spec.TensorSpec("B", "INT8", (-1,), optional=True),
        spec.TensorSpec("S", "BYTES", (1,), optional=True),
    ),
    outputs=(spec.TensorSpec("Y", "FP32", (2,)), spec.TensorSpec("T", "BYTES", (1,))),
    batching=batching.Config(max_batch_size=3, dynamic=True),
    queue=spec.QueuePolicy(timeout_us=5, allow_override=True),
)
DIMS = st.lists(st.integers(0, 3), max_size=2).map(tuple)
TENSORS = st.builds(
    border.Tensor,
    st.sampled_from(["A", "B", "S", "X"]),
    st.sampled_from(["FP32", "INT8", "BYTES"]),
    DIMS,
    st.integers(0, 24).flatmap(lambda size: st.sampled_from([bytes(size), memoryview(bytes(size))])),
)
OUTPUTS = st.builds(border.RequestedOutput, st.sampled_from(["Y", "T", "X"]), st.integers(0, 2))


def ignored(answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None: ...


@st.composite
def good(draw: st.DrawFn) -> list[border.Tensor]:
    """Inputs that fit, in any order."""
    batch = draw(st.integers(1, 3))
    inputs = [border.Tensor("A", "FP32", (batch, 2), bytes(8 * batch))]
    if draw(st.booleans()):
        length = draw(st.integers(0, 3))
        inputs.append(border.Tensor("B", "INT8", (batch, length), bytes(batch * length)))
    return draw(st.permutations(inputs))


REQUESTS = st.builds(
    border.InferRequest,
    st.just("m"),
    st.just(""),
    st.sampled_from(["", "7"]),
    good() | st.lists(TENSORS, max_size=3),
    st.lists(OUTPUTS, max_size=2),
    st.sampled_from([{}, {"timeout": 3}]),
    st.just(ignored),
)


def outcome(admit: Any, *where: Any) -> Any:
    """All that was found, or the refusal."""
    try:
        admitted: work.Work = admit(*where)
    except border.InferenceError as error:
        return error.kind, error.message
    return {field.name: getattr(admitted, field.name) for field in dataclasses.fields(admitted)}


@given(st.lists(REQUESTS, max_size=12))
def test_what_is_remembered_changes_nothing(requests: list[border.InferRequest]) -> None:
    quick = admission.Admission(MODEL)
    for asked in [*requests, *requests]:
        expected = outcome(validation.admit, MODEL, asked, LOOP, 10, SHARED)
        assert outcome(quick.admit, asked, LOOP, 10, SHARED) == expected


def test_a_known_form_carries_the_new_data() -> None:
    quick = admission.Admission(MODEL)
    for data in (b"12345678", b"abcdefgh"):
        asked = border.InferRequest("m", "", "", [border.Tensor("A", "FP32", (1, 2), data)], [], {}, ignored)
        (first, *missing) = quick.admit(asked, LOOP, 0, SHARED).inputs
        assert first is asked.inputs[0]
        assert missing == [None, None]


def test_forms_are_forgotten_before_they_are_too_many() -> None:
    quick = admission.Admission(MODEL)
    for length in range(3000):
        inputs = [border.Tensor("A", "FP32", (1, 2), bytes(8)), border.Tensor("B", "INT8", (1, length), bytes(length))]
        quick.admit(border.InferRequest("m", "", "", inputs, [], {}, ignored), LOOP, 0, SHARED)
        assert len(quick._passed) <= 1024

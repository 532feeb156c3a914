from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest

from gpu_worker.engine import batching, border, spec, validation, work

MODEL = spec.ModelSpec(
    name="m",
    version="1",
    platform="onnxruntime_onnx",
    max_batch_size=4,
    inputs=(spec.TensorSpec("A", "FP32", (2,)), spec.TensorSpec("B", "FP32", (-1,))),
    outputs=(spec.TensorSpec("Y", "FP32", (2,)), spec.TensorSpec("T", "BYTES", (1,))),
    batching=batching.Config(max_batch_size=4, dynamic=True),
)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def fp32(name: str, *shape: int, size_bytes: int | None = None) -> border.Tensor:
    count = 4
    for dim in shape:
        count *= dim
    return border.Tensor(name, "FP32", shape, bytes(max(0, count) if size_bytes is None else size_bytes))


def request(*inputs: border.Tensor, **changes: object) -> border.InferRequest:
    def reply(answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None: ...

    asked = border.InferRequest("m", "", "r1", list(inputs), [], {}, reply)
    return dataclasses.replace(asked, **changes)  # type: ignore[arg-type]  # names are the test's own


def admit(asked: border.InferRequest, loop: asyncio.AbstractEventLoop, model: spec.ModelSpec = MODEL) -> work.Work:
    return validation.admit(model, asked, loop, 1_000_000_000)


def test_a_good_request_is_admitted_in_the_models_order(loop: asyncio.AbstractEventLoop) -> None:
    admitted = admit(request(fp32("B", 2, 5), fp32("A", 2, 2)), loop)
    assert [tensor.name for tensor in admitted.inputs if tensor] == ["A", "B"]
    assert (admitted.size, admitted.key, admitted.outputs) == (2, ((2,), (5,)), None)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            [fp32("A", 1, 2)],
            (
                "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['A'], but missing required input(s) "
                "['B']. Please provide all required input(s)."
            ),
        ),
        ([fp32("A", 1, 2), fp32("X", 1, 2)], "unexpected inference input 'X' for model 'm'"),
        ([fp32("A", 1, 2), fp32("A", 1, 2)], "an inference input is given twice for model 'm'"),
        (
            [border.Tensor("A", "INT32", (1, 2), bytes(8)), fp32("B", 1, 2)],
            "inference input 'A' data-type is 'INT32', but model 'm' expects 'FP32'",
        ),
        (
            [fp32("A", 1, 3), fp32("B", 1, 2)],
            "unexpected shape for input 'A' for model 'm'. Expected [-1,2], got [1,3]",
        ),
        ([fp32("A"), fp32("B", 1, 2)], "unexpected shape for input 'A' for model 'm'. Expected [-1,2], got []"),
        ([fp32("A", 1, 2), fp32("B", 1, -2)], "invalid shape for input 'B' for model 'm': dimension -2 is negative"),
        ([fp32("A", 5, 2), fp32("B", 5, 2)], "inference request batch-size must be <= 4 for 'm'"),
        ([fp32("A", 0, 2), fp32("B", 0, 2)], "inference request batch-size must be >= 1 for 'm'"),
        ([fp32("A", 1, 2), fp32("B", 2, 2)], "inputs have different batch sizes [1, 2] for model 'm'"),
        (
            [fp32("A", 1, 2, size_bytes=7), fp32("B", 1, 2)],
            "input byte size mismatch for input 'A' for model 'm'. Expected 8, got 7",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_known_words(
    inputs: list[border.Tensor], message: str, loop: asyncio.AbstractEventLoop
) -> None:
    with pytest.raises(border.InferenceError) as refused:
        admit(request(*inputs), loop)
    assert refused.value.message == f"[request id: r1] {message}"
    assert refused.value.kind is border.ErrorKind.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("outputs", "fragment"),
    [
        ([border.RequestedOutput("Z")], "unexpected inference output 'Z' for model 'm'"),
        ([border.RequestedOutput("Y"), border.RequestedOutput("Y")], "an inference output is requested twice"),
        ([border.RequestedOutput("T", 2)], "class result not available for output 'T' due to unsupported type 'BYTES'"),
        ([border.RequestedOutput("Y", -1)], "classification of output 'Y' must not be negative"),
    ],
)
def test_outputs_that_cannot_be_are_refused(
    outputs: list[border.RequestedOutput], fragment: str, loop: asyncio.AbstractEventLoop
) -> None:
    with pytest.raises(border.InferenceError) as refused:
        admit(request(fp32("A", 1, 2), fp32("B", 1, 2), outputs=outputs, id=""), loop)
    assert refused.value.message.startswith(f"[request id: <id_unknown>] {fragment}")


def test_strings_too_short_for_their_shape_are_refused_unread(loop: asyncio.AbstractEventLoop) -> None:
    model = dataclasses.replace(MODEL, inputs=(spec.TensorSpec("S", "BYTES", (2,)),))
    with pytest.raises(border.InferenceError, match="expected 4 string elements for inference input 'S'"):
        admit(request(border.Tensor("S", "BYTES", (2, 2), bytes(12))), loop, model)


def test_an_optional_input_may_be_left_out_and_parts_batches(loop: asyncio.AbstractEventLoop) -> None:
    model = dataclasses.replace(
        MODEL, inputs=(spec.TensorSpec("A", "FP32", (2,)), spec.TensorSpec("B", "FP32", (2,), optional=True))
    )
    without = admit(request(fp32("A", 1, 2)), loop, model)
    both = admit(request(fp32("A", 1, 2), fp32("B", 1, 2)), loop, model)
    assert without.inputs[1] is None
    assert without.key != both.key


@pytest.mark.parametrize(
    ("policy", "timeout_us", "deadline_s", "expected_ns"),
    [
        (spec.QueuePolicy(), 7, None, None),
        (spec.QueuePolicy(timeout_us=50), 7, None, 1_000_050_000),
        (spec.QueuePolicy(timeout_us=50, allow_override=True), 7, None, 1_000_007_000),
        (spec.QueuePolicy(timeout_us=50, allow_override=True), 70, None, 1_000_050_000),
        (spec.QueuePolicy(allow_override=True), 7, None, None),
        (spec.QueuePolicy(timeout_us=50), 0, 1.00001, 1_000_010_000),
    ],
)
def test_the_earliest_end_of_patience_counts(
    policy: spec.QueuePolicy,
    timeout_us: int,
    deadline_s: float | None,
    expected_ns: int | None,
    loop: asyncio.AbstractEventLoop,
) -> None:
    asked = request(fp32("A", 1, 2), fp32("B", 1, 2), parameters={"timeout": timeout_us}, deadline_s=deadline_s)
    assert admit(asked, loop, dataclasses.replace(MODEL, queue=policy)).deadline_ns == expected_ns

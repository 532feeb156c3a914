"""Requests of different shapes in one batch, for models that take all elements in a row."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from gpu_worker.engine import border
from tests.support import engine_client as client
from tests.support import onnx_models

CONFIG = """
max_batch_size: 8
input { name: "INPUT" data_type: TYPE_FP32 dims: %s allow_ragged_batch: true }
batch_input {
  kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO target_name: "BOUNDS" data_type: TYPE_INT32 source_input: "INPUT"
}
output { name: "SUMS" data_type: TYPE_FP32 dims: 1 }
output { name: "TWICE" data_type: TYPE_FP32 dims: %s }
batch_output { target_name: "TWICE" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "INPUT" }
dynamic_batching { preferred_batch_size: 3 max_queue_delay_microseconds: 60000000 } instance_group { count: 1 }
"""


async def test_requests_of_different_lengths_run_together(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.ragged(), config=CONFIG % ("-1", "-1"))
    rows = [np.arange(length, dtype=np.float32).reshape(1, length) + 1 for length in (3, 1, 5)]
    async with client.running(repository) as asking:
        metadata = await asking.engine.model_metadata("m", "")
        assert [each.name for each in metadata.inputs] == ["INPUT"]
        answers = await asking.ask_all([asking.prepare("m", row) for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            assert client.array(answer, "SUMS").tolist() == [[row.sum()]]
            assert client.array(answer, "TWICE").tolist() == (2 * row).tolist()
        assert (await asking.engine.statistics("m", ""))[0].execution_count == 1


async def test_dimensions_that_vary_are_taken_at_their_place(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.ragged(), config=CONFIG % ("[-1, 2]", "[-1, 2]"))
    rows = [np.arange(2 * length, dtype=np.float32).reshape(1, length, 2) for length in (2, 0, 1)]
    wanted = [border.RequestedOutput("TWICE"), border.RequestedOutput("SUMS")]
    async with client.running(repository) as asking:
        answers = await asking.ask_all([asking.prepare("m", row, outputs=wanted) for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            assert client.array(answer, "TWICE").tolist() == (2 * row).tolist()
        refused = client.refusal(await asking.ask("m", np.ones((1, 2, 3))))
        assert "Expected [-1,-1,2], got [1,2,3]" in refused.message


async def test_an_output_that_is_not_of_its_inputs_size_fails_the_batch(repository: pathlib.Path) -> None:
    config = (CONFIG % ("-1", "[-1, 2]")).replace("preferred_batch_size: 3", "preferred_batch_size: 1")
    onnx_models.put(repository, "m", onnx_models.ragged(), config=config)
    async with client.running(repository) as asking:
        refused = client.refusal(await asking.ask("m", np.ones((1, 3))))
        assert refused.kind is border.ErrorKind.INTERNAL
        assert "output 'TWICE' has 3 elements, but 'INPUT' asks for 6" in refused.message


async def test_warm_up_makes_what_is_made_for_batches(repository: pathlib.Path) -> None:
    warm = """
        model_warmup { name: "w" batch_size: 2 inputs { key: "INPUT" value { data_type: TYPE_FP32 dims: 3 zero_data: true } } }
    """
    onnx_models.put(repository, "m", onnx_models.ragged(), config=CONFIG % ("-1", "-1") + warm)
    onnx_models.put(
        repository,
        "none",
        onnx_models.ragged(),
        config=CONFIG % ("-1", "-1") + 'model_warmup { name: "w" batch_size: 1 }',
    )
    async with client.running(repository, control=client.EXPLICIT) as asking:
        await asking.engine.load("m", {})
        with pytest.raises(border.InferenceError, match="input 'INPUT' must be given: other inputs are made from it"):
            await asking.engine.load("none", {})


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("max_batch_size: 8", "", "needs max_batch_size >= 1"),
        ("allow_ragged_batch: true", "allow_ragged_batch: true optional: true", "cannot be ragged and optional"),
        ('target_name: "BOUNDS"', 'target_name: "INPUT"', "batch_input.target_name 'INPUT' must be an input"),
        ('target_name: "BOUNDS"', 'target_name: ["BOUNDS", "BOUNDS"]', "must not repeat a name"),
        ("TYPE_INT32", "TYPE_INT64", "batch_input.data_type must be TYPE_INT32 or TYPE_FP32"),
        ("TYPE_INT32", "TYPE_FP32", "must be an input of the model of type FP32"),
        ('source_input: "INPUT"\n}', 'source_input: "X"\n}', "batch_input.source_input ['X'] must name one input"),
        ('source_input: "INPUT" }', "}", "batch_output.source_input [] must name one input"),
        ('target_name: "TWICE"', 'target_name: "X"', "batch_output.target_name 'X' must be in output"),
        ('"TWICE" data_type: TYPE_FP32 dims: -1', '"TWICE" data_type: TYPE_FP32 dims: [2, -1]', "vary where input"),
    ],
)
async def test_what_cannot_be_is_refused_at_load(old: str, new: str, fragment: str, repository: pathlib.Path) -> None:
    config = CONFIG % ("-1", "-1")
    assert old in config
    if not new and old.startswith("max"):
        config = config.replace(
            "dynamic_batching { preferred_batch_size: 3 max_queue_delay_microseconds: 60000000 }", ""
        )
    onnx_models.put(repository, "m", onnx_models.ragged(), config=config.replace(old, new))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError) as refused:
            await asking.engine.load("m", {})
        assert fragment in refused.value.message
        assert refused.value.kind is border.ErrorKind.INVALID_ARGUMENT


async def test_a_model_that_batches_is_not_ragged(repository: pathlib.Path) -> None:
    config = """
        max_batch_size: 8 input { name: "INPUT" data_type: TYPE_FP32 dims: 4 allow_ragged_batch: true }
        output { name: "OUTPUT" data_type: TYPE_FP32 dims: 4 }
    """
    onnx_models.put(repository, "m", onnx_models.identity(), config=config)
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError, match=r"must take it in shape \[-1\]; it has \[-1, 4\]"):
            await asking.engine.load("m", {})

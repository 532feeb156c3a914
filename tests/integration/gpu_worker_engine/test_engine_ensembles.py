from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import numpy as np
import pytest

from gpu_worker.engine import border, tensors
from tests.support import engine_client as client
from tests.support import ensembles, onnx_models

ONES = np.ones((1, 4), np.float32)
EXPLICIT = client.EXPLICIT


def tensor(name: str, array: Any, datatype: str = "FP32") -> border.Tensor:
    typed = np.asarray(array, tensors.DATATYPES[datatype].dtype)
    return border.Tensor(name, datatype, typed.shape, bytes(tensors.to_wire(typed)))


async def ask(asking: client.Client, model: str, *given: border.Tensor, **fields: Any) -> client.Answer:
    return (await asking.ask_all([prepared(asking, model, *given, **fields)]))[0]


def prepared(
    asking: client.Client, model: str, *given: border.Tensor, **fields: Any
) -> tuple[border.InferRequest, asyncio.Future[client.Answer]]:
    request, answered = asking.prepare(model, ONES, **fields)
    request.inputs = list(given)
    return request, answered


async def states(asking: client.Client) -> dict[str, tuple[str, str]]:
    return {each.name: (each.state, each.reason) for each in await asking.engine.index(ready=False) if each.state}


@pytest.fixture
def models(repository: pathlib.Path) -> pathlib.Path:
    for name, factor in (("two", 2), ("three", 3)):
        onnx_models.put(repository, name, onnx_models.scale(factor), config="max_batch_size: 8\ndynamic_batching {}")
    return repository


async def test_steps_follow_each_other(models: pathlib.Path) -> None:
    ensembles.put(models, "six", ensembles.chain("two", "three"))
    async with client.running(models) as asking:
        answer = await ask(asking, "six", tensor("IN", ONES * 5), id="x")
        assert isinstance(answer, border.InferResponse)
        assert (answer.model_name, answer.model_version, answer.id) == ("six", "1", "x")
        assert dict(answer.parameters) == {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
        assert client.array(answer, "OUT").tolist() == [[30.0] * 4]
        (found,) = await asking.engine.statistics("six", "")
        assert (found.success.count, found.inference_count, found.execution_count, found.in_flight) == (1, 1, 1, 0)
        inner = [(await asking.engine.statistics(name, ""))[0] for name in ("two", "three")]
        assert [each.success.count for each in inner] == [1, 1]
        assert found.compute_infer.ns == sum(each.compute_infer.ns for each in inner)


async def test_loading_an_ensemble_loads_what_it_is_composed_of(models: pathlib.Path) -> None:
    ensembles.put(models, "six", ensembles.chain("two", "three"))
    async with client.running(models, control=EXPLICIT) as asking:
        await asking.engine.load("six", {})
        assert await states(asking) == dict.fromkeys(("six", "three", "two"), ("READY", ""))
        await asking.engine.unload("two", unload_dependents=False)
        assert (await states(asking))["six"] == ("UNAVAILABLE", "unloaded")
        refused = client.refusal(await ask(asking, "six", tensor("IN", ONES)))
        assert refused.message == "Request for unknown model: 'six' has no available versions"
        await asking.engine.load("two", {})
        assert client.array(await ask(asking, "six", tensor("IN", ONES)), "OUT")[0, 0] == 6
        await asking.engine.unload("six", unload_dependents=True)
        await asking.until(lambda: _all(asking, "UNAVAILABLE", "six", "three"))
        assert (await states(asking))["two"] == ("READY", ""), "somebody asked for it"


async def _all(asking: client.Client, state: str, *names: str) -> bool:
    found = await states(asking)
    return all(found[name][0] == state for name in names)

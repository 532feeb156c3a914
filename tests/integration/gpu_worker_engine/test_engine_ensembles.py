from __future__ import annotations

import asyncio
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from gpu_worker.engine import border, tensors
from gpu_worker.tracing import settings as trace_settings
from tests.support import engine_client as client
from tests.support import ensembles, onnx_models, shared_objects

ONES = np.ones((1, 4), np.float32)
EXPLICIT = client.EXPLICIT
FP32 = ("FP32", [4])


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


async def test_steps_without_a_dependency_run_side_by_side_and_only_those_that_somebody_needs(
    models: pathlib.Path,
) -> None:
    for name in ("left", "right"):
        onnx_models.put(models, name, onnx_models.slow(50_000), config="max_batch_size: 8 instance_group { count: 1 }")
    steps: list[ensembles.Step] = [
        ("left", {"INPUT": "IN"}, {"OUTPUT": "L"}),
        ("right", {"INPUT": "IN"}, {"OUTPUT": "R"}),
        ("two", {"INPUT": "L"}, {"OUTPUT": "L2"}),
    ]
    ensembles.put(models, "fork", ensembles.config({"IN": FP32}, {"L": FP32, "R": FP32, "L2": FP32}, steps, batch=8))
    async with client.running(models) as asking:
        request, answered = prepared(asking, "fork", tensor("IN", ONES))
        asking.engine.submit([request])
        assert [(await asking.engine.statistics(name, ""))[0].in_flight for name in ("left", "right")] == [1, 1]
        answer = await answered
        assert [client.array(answer, name)[0, 0] for name in ("L", "R", "L2")] == [1, 1, 2]
        asked = await ask(asking, "fork", tensor("IN", ONES), outputs=[border.RequestedOutput("L2")])
        assert isinstance(asked, border.InferResponse)
        assert [each.name for each in asked.outputs] == ["L2"]
        counts = [(await asking.engine.statistics(name, ""))[0].success.count for name in ("left", "right", "two")]
        assert counts == [2, 1, 2]


async def test_what_comes_together_goes_through_every_step_together(repository: pathlib.Path) -> None:
    gather = "max_batch_size: 8\ndynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 60000000 }"
    for name, factor in (("two", 2), ("three", 3)):
        onnx_models.put(repository, name, onnx_models.scale(factor), config=gather)
    ensembles.put(repository, "six", ensembles.chain("two", "three"))
    async with client.running(repository) as asking:
        answers = await asking.ask_all([prepared(asking, "six", tensor("IN", ONES * each)) for each in range(8)])
        assert [client.array(answer, "OUT")[0, 0] for answer in answers] == [6.0 * each for each in range(8)]
        for name in ("two", "three"):
            (found,) = await asking.engine.statistics(name, "")
            assert (found.execution_count, found.inference_count) == (1, 8)


async def test_the_first_step_that_fails_ends_the_request(models: pathlib.Path) -> None:
    onnx_models.put(models, "picky", onnx_models.picky(), config="max_batch_size: 8")
    one: ensembles.Step = ("picky", {"INPUT": "IN"}, {"OUTPUT": "OUT"})
    ensembles.put(models, "e", ensembles.config({"IN": ("INT64", [1])}, {"OUT": ("INT64", [1])}, [one], batch=8))
    async with client.running(models, control=EXPLICIT, load_at_start=("e",)) as asking:
        refused = client.refusal(await ask(asking, "e", tensor("IN", [[7]], "INT64"), id="r"))
        assert refused.kind is border.ErrorKind.INTERNAL
        assert refused.message.startswith("in ensemble 'e', [request id: r] ")
        (found,) = await asking.engine.statistics("e", "")
        assert (found.success.count, found.fail.count, found.failures["OTHER"], found.in_flight) == (0, 1, 1, 0)
        assert client.array(await ask(asking, "e", tensor("IN", [[3]], "INT64")), "OUT").tolist() == [[30]]
        await asking.engine.unload("picky", unload_dependents=False)
        await asking.until(lambda: _all(asking, "UNAVAILABLE", "picky"))


async def test_what_does_not_fit_the_ensemble_is_refused_before_any_step(models: pathlib.Path) -> None:
    ensembles.put(models, "six", ensembles.chain("two", "three", batch=4))
    async with client.running(models) as asking:
        for given, told in (
            (tensor("NO", ONES), "unexpected inference input 'NO' for model 'six'"),
            (tensor("IN", ONES, "FP64"), "inference input 'IN' data-type is 'FP64', but model 'six' expects 'FP32'"),
            (tensor("IN", np.ones((5, 4))), "inference request batch-size must be <= 4 for 'six'"),
        ):
            assert told in client.refusal(await ask(asking, "six", given)).message
        wrong = [border.RequestedOutput("MID0")]
        refused = client.refusal(await ask(asking, "six", tensor("IN", ONES), outputs=wrong))
        assert "unexpected inference output 'MID0' for model 'six'" in refused.message
        assert (await asking.engine.statistics("two", ""))[0].success.count == 0


@pytest.fixture
def busy(models: pathlib.Path) -> pathlib.Path:
    """Models whose first step takes a tenth of a second, on one instance."""
    one = "max_batch_size: 8 instance_group { count: 1 }"
    onnx_models.put(models, "slow", onnx_models.slow(), config=one)
    ensembles.put(models, "e", ensembles.chain("slow", "two"))
    return models


async def test_a_request_that_is_given_up_ends_where_it_waits(busy: pathlib.Path) -> None:
    async with client.running(busy, control=EXPLICIT, load_at_start=("e",)) as asking:
        first, answered_first = prepared(asking, "e", tensor("IN", ONES))
        second, answered = prepared(asking, "e", tensor("IN", ONES))
        asking.engine.submit([first])
        asking.engine.submit([second])
        second.cancel()
        refused = client.refusal(await answered)
        assert (refused.kind, "has been cancelled" in refused.message) == (border.ErrorKind.CANCELLED, True)
        assert client.array(await answered_first, "OUT")[0, 0] == 2
        (found,) = await asking.engine.statistics("e", "")
        assert (found.failures["CANCELED"], found.success.count) == (1, 1)
        assert (await asking.engine.statistics("two", ""))[0].success.count == 1
        await asking.engine.unload("slow", unload_dependents=False)
        await asking.until(lambda: _all(asking, "UNAVAILABLE", "slow"))


async def test_a_deadline_holds_in_every_step(busy: pathlib.Path) -> None:
    async with client.running(busy) as asking:
        soon_s = asyncio.get_running_loop().time() + 0.02
        first, answered_first = prepared(asking, "e", tensor("IN", ONES))
        second, answered = prepared(asking, "e", tensor("IN", ONES), deadline_s=soon_s)
        asking.engine.submit([first])
        asking.engine.submit([second])
        refused = client.refusal(await answered)
        assert refused.kind is border.ErrorKind.UNAVAILABLE
        assert "Request timeout expired" in refused.message
        await answered_first


async def test_accepted_requests_finish_though_models_go(busy: pathlib.Path) -> None:
    async with client.running(busy, control=EXPLICIT, load_at_start=("e",)) as asking:
        request, answered = prepared(asking, "e", tensor("IN", ONES))
        asking.engine.submit([request])
        for name in ("two", "slow"):
            await asking.engine.unload(name, unload_dependents=False)
        assert (await states(asking))["e"] == ("UNAVAILABLE", "unloaded")
        assert client.array(await answered, "OUT")[0, 0] == 2
        await asking.until(lambda: _all(asking, "UNAVAILABLE", "two", "slow"))


async def test_draining_lets_every_step_of_what_was_accepted_run(busy: pathlib.Path) -> None:
    ensembles.put(busy, "outer", _outer("e"))
    async with client.running(busy) as asking:
        request, answered = prepared(asking, "outer", tensor("IN", ONES))
        asking.engine.submit([request])
        assert await asking.engine.drain(client.WIDE_S)
        assert client.array(await answered, "OUT")[0, 0] == 4


async def test_closing_leaves_nobody_without_an_answer(busy: pathlib.Path) -> None:
    async with client.running(busy) as asking:
        given = [prepared(asking, "e", tensor("IN", ONES)) for _ in range(4)]
        asking.engine.submit([request for request, _ in given])
        await asking.engine.close()
        for _, answered in given:
            assert "Server is stopping" in client.refusal(await answered).message


def _outer(inner: str) -> str:
    steps: list[ensembles.Step] = [
        (inner, {"IN": "IN"}, {"OUT": "MID"}),
        ("two", {"INPUT": "MID"}, {"OUTPUT": "OUT"}),
    ]
    return ensembles.config({"IN": FP32}, {"OUT": FP32}, steps, batch=8)


async def test_ensembles_of_ensembles(models: pathlib.Path) -> None:
    ensembles.put(models, "six", ensembles.chain("two", "three"))
    ensembles.put(models, "twelve", _outer("six"))
    async with client.running(models, control=EXPLICIT) as asking:
        await asking.engine.load("twelve", {})
        assert await _all(asking, "READY", "twelve", "six", "two", "three")
        assert client.array(await ask(asking, "twelve", tensor("IN", ONES)), "OUT")[0, 0] == 12
        (outer,) = await asking.engine.statistics("twelve", "")
        (inner,) = await asking.engine.statistics("six", "")
        (last,) = await asking.engine.statistics("two", "")
        assert (outer.success.count, inner.success.count, last.success.count) == (1, 1, 2)
        assert outer.compute_infer.ns > inner.compute_infer.ns
        await asking.engine.unload("twelve", unload_dependents=True)
        await asking.until(lambda: _all(asking, "UNAVAILABLE", "twelve", "six", "two", "three"))


async def test_models_that_batch_and_others_pass_tensors_on(models: pathlib.Path) -> None:
    ensembles.put(models, "one", ensembles.chain("two", "three", batch=0))
    wide: ensembles.Tensors = {"IN": ("FP32", [-1, 4])}
    step: ensembles.Step = ("two", {"INPUT": "IN"}, {"OUTPUT": "OUT"})
    ensembles.put(models, "all", ensembles.config(wide, {"OUT": ("FP32", [-1, 4])}, [step]))
    async with client.running(models) as asking:
        assert client.array(await ask(asking, "one", tensor("IN", ONES[0])), "OUT").tolist() == [6.0] * 4
        assert client.array(await ask(asking, "all", tensor("IN", np.ones((3, 4)))), "OUT").shape == (3, 4)
        refused = client.refusal(await ask(asking, "all", tensor("IN", np.ones((9, 4)))))
        assert refused.message.startswith(
            "in ensemble 'all', [request id: r] inference request batch-size must be <= 8"
        )


async def test_an_optional_input_that_is_left_out_is_left_out_of_the_steps(models: pathlib.Path) -> None:
    steps: list[ensembles.Step] = [
        ("two", {"INPUT": "IN"}, {"OUTPUT": "OUT"}),
        ("three", {"INPUT": "MORE"}, {"OUTPUT": "OUT2"}),
    ]
    text = ensembles.config({"IN": FP32, "MORE": FP32}, {"OUT": FP32, "OUT2": FP32}, steps, batch=8)
    ensembles.put(models, "e", text.replace('name: "MORE"', 'name: "MORE" optional: true'))
    async with client.running(models) as asking:
        asked = await ask(asking, "e", tensor("IN", ONES), outputs=[border.RequestedOutput("OUT")])
        assert client.array(asked, "OUT")[0, 0] == 2
        refused = client.refusal(await ask(asking, "e", tensor("IN", ONES)))
        assert (
            "in ensemble 'e', [request id: r] expected 1 inputs but got 0 inputs for model 'three'" in refused.message
        )


async def test_classes_have_the_labels_of_the_ensemble_or_else_of_its_step(repository: pathlib.Path) -> None:
    text = 'max_batch_size: 8 output { name: "OUTPUT" data_type: TYPE_FP32 dims: 4 label_filename: "labels" }'
    made = onnx_models.put(repository, "m", onnx_models.identity(), config=text)
    (made / "labels").write_text("a\nb\nc\nd\n")
    ensembles.put(repository, "plain", ensembles.chain("m"))
    ensembles.put(repository, "own", ensembles.chain("m").replace('{name: "OUT"', '{label_filename: "l" name: "OUT"'))
    (repository / "own" / "l").write_text("w\nx\ny\nz\n")
    async with client.running(repository) as asking:
        for name, best in (("plain", "d"), ("own", "z")):
            asked = [border.RequestedOutput("OUT", classification=1)]
            answer = await ask(asking, name, tensor("IN", [[0, 1, 2, 3]]), outputs=asked)
            assert client.array(answer, "OUT").tolist() == [[f"3.000000:3:{best}"]]


async def test_tensors_may_come_from_and_go_to_shared_memory(models: pathlib.Path) -> None:
    ensembles.put(models, "six", ensembles.chain("two", "three"))
    with shared_objects.made(64) as path:
        path.write_bytes(ONES.tobytes() + bytes(48))
        async with client.running(models) as asking:
            await asking.engine.register_system_region(border.SystemRegion("r", shared_objects.key(path), 0, 64))
            given = border.Tensor("IN", "FP32", (1, 4), b"", border.Region("r", 0, 16))
            for room, told in ((16, ""), (8, "shared memory size specified with the request for output 'OUT'")):
                to = border.Region("r", 32, room)
                answer = await ask(asking, "six", given, outputs=[border.RequestedOutput("OUT", region=to)])
                if told:
                    assert told in client.refusal(answer).message
                else:
                    assert isinstance(answer, border.InferResponse)
                    assert answer.outputs == [border.Tensor("OUT", "FP32", (1, 4), b"", to)]
                    assert path.read_bytes()[32:48] == (6 * ONES).tobytes()


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("nowhere", "ensemble e contains models that are not available or ambiguous: nowhere"),
        (
            "broken",
            "ensemble 'e' depends on 'broken' which has no loaded version. Model 'broken' loading failed with error: ",
        ),
        ("two:7", "ensemble 'e' depends on 'two' whose required version 7 is not loaded."),
        ("e", "circular dependency between ensembles: e -> ... -> e -> e"),
    ],
)
async def test_a_step_that_cannot_be_is_told_with_the_reason(models: pathlib.Path, step: str, told: str) -> None:
    onnx_models.put(models, "broken", b"this is no graph")
    ensembles.put(models, "e", ensembles.chain(step))
    async with client.running(models, control=EXPLICIT) as asking:
        with pytest.raises(border.InferenceError) as refused:
            await asking.engine.load("e", {})
        assert refused.value.kind is border.ErrorKind.INVALID_ARGUMENT
        assert refused.value.message.startswith(f"load failed for model 'e': {told}")
        state, reason = (await states(asking))["e"]
        assert (state, reason.startswith(told)) == ("UNAVAILABLE", True)


async def test_many_ensembles_may_need_one_that_still_waits(models: pathlib.Path) -> None:
    ensembles.put(models, "inner", ensembles.chain("two", "three"))
    for number in range(100):
        ensembles.put(models, f"outer{number}", _outer("inner"))
    async with client.running(models) as asking:
        assert await asking.engine.ready()
        assert client.array(await ask(asking, "outer99", tensor("IN", ONES)), "OUT")[0, 0] == 12


async def test_ensembles_of_each_other_do_not_wait_for_each_other(models: pathlib.Path) -> None:
    for name, other in (("e1", "e2"), ("e2", "e1")):
        ensembles.put(models, name, _outer(other))
    async with client.running(models, control=EXPLICIT) as asking, asyncio.timeout(client.WIDE_S):
        loads = [asking.engine.load(name, {}) for name in ("e1", "e2")]
        for refused in await asyncio.gather(*loads, return_exceptions=True):
            assert isinstance(refused, border.InferenceError)
            assert "circular dependency between ensembles" in refused.message


async def test_a_failed_ensemble_comes_once_its_steps_do(models: pathlib.Path) -> None:
    onnx_models.put(models, "broken", b"this is no graph")
    ensembles.put(models, "e", ensembles.chain("broken", "two"))
    async with client.running(models, exit_on_error=False, control=EXPLICIT, load_at_start=("*",)) as asking:
        assert not await asking.engine.ready()
        onnx_models.put(models, "broken", onnx_models.scale(5), config="max_batch_size: 8")
        await asking.engine.load("broken", {})
        assert await asking.engine.ready()
        assert client.array(await ask(asking, "e", tensor("IN", ONES)), "OUT")[0, 0] == 10


async def test_an_ensemble_follows_models_that_are_loaded_anew(models: pathlib.Path) -> None:
    ensembles.put(models, "six", ensembles.chain("two", "three"))
    async with client.running(models, control=EXPLICIT, load_at_start=("six",)) as asking:
        onnx_models.put(models, "two", onnx_models.scale(7), config="max_batch_size: 8")
        await asking.engine.load("two", {})
        assert client.array(await ask(asking, "six", tensor("IN", ONES)), "OUT")[0, 0] == 21
        onnx_models.put(models, "two", onnx_models.scale(7, ("batch", 5)), config="max_batch_size: 8")
        await asking.engine.load("two", {})
        state, reason = (await states(asking))["six"]
        assert state == "UNAVAILABLE"
        assert reason == (
            "in ensemble six, ensemble tensor IN: inconsistent shape: [-1,4] is inferred from model six while [-1,5] is "
            "inferred from model two"
        )
        onnx_models.put(models, "two", onnx_models.scale(2), config="max_batch_size: 8")
        await asking.engine.load("two", {})
        assert client.array(await ask(asking, "six", tensor("IN", ONES)), "OUT")[0, 0] == 6
        await asking.engine.unload("six", unload_dependents=False)
        await asking.until(lambda: _all(asking, "UNAVAILABLE", "six"))
        await asking.engine.load("two", {})
        assert (await states(asking))["six"] == ("UNAVAILABLE", "unloaded")


async def test_traces_of_steps_name_that_of_the_ensemble(models: pathlib.Path, tmp_path: pathlib.Path) -> None:
    ensembles.put(models, "six", ensembles.chain("two", "three"))
    ensembles.put(models, "twelve", _outer("six"))
    path = tmp_path / "trace.json"
    settings = trace_settings.Settings(levels=("TIMESTAMPS",), rate=1, file=str(path), count=1)
    async with client.running(models, trace=settings) as asking:
        await ask(asking, "twelve", tensor("IN", ONES), id="x")
    found = json.loads((tmp_path / "trace.json.0").read_text())
    heads = {each["id"]: each for each in found if "model_name" in each}
    parents = {each["model_name"]: each.get("parent_id") for each in heads.values()}
    by_name = {each["model_name"]: each["id"] for each in heads.values()}
    assert (parents["twelve"], parents["six"], parents["three"]) == (None, by_name["twelve"], by_name["six"])
    assert all(each["request_id"] == "x" for each in heads.values())
    assert len(heads) == 5
    events = {
        head: [stamp["name"] for each in found if each["id"] == head for stamp in each.get("timestamps", ())]
        for head in heads
    }
    assert events[by_name["twelve"]] == ["REQUEST_START", "QUEUE_START", "INFER_RESPONSE_COMPLETE", "REQUEST_END"]
    assert "COMPUTE_START" in events[by_name["three"]]

from __future__ import annotations

import asyncio
import pathlib

import numpy as np
import pytest

from gpu_worker import core
from gpu_worker.engine import border, tensors
from tests.support import engine_client as client
from tests.support import onnx_models

ONE_INSTANCE = "instance_group { count: 1 kind: KIND_CPU }"
FIXED = sorted(set(tensors.DATATYPES) - {"BYTES"})


@pytest.mark.parametrize("datatype", FIXED)
async def test_every_fixed_size_datatype_goes_through(datatype: str, repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity(datatype))
    async with client.running(repository) as asking:
        sent = np.arange(8).reshape(2, 4).astype(tensors.DATATYPES[datatype].dtype)
        got = client.array(await asking.ask("m", sent, datatype=datatype))
        assert got.dtype == sent.dtype
        assert got.tolist() == sent.tolist()
        assert (await asking.engine.model_metadata("m", "")).inputs == (
            border.TensorMetadata("INPUT", datatype, (-1, 4)),
        )


async def _none_waits(asking: client.Client, model: str) -> bool:
    return (await asking.engine.statistics(model, ""))[0].pending == 0


async def _unready(asking: client.Client) -> bool:
    return not await asking.engine.ready()


async def test_strings_go_through_alone_and_together(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity("BYTES", ("batch", 2)), config=ONE_INSTANCE)
    async with client.running(repository) as asking:
        rows = [["", "é\0"], ["longer than the others", "b"], ["c", "d"]]
        answers = await asking.ask_all([asking.prepare("m", [row], datatype="BYTES") for row in rows])
        assert [client.array(answer).tolist() for answer in answers] == [[row] for row in rows]


async def test_a_request_with_unreadable_strings_fails_alone(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity("BYTES", ("batch", 1)), config=ONE_INSTANCE)
    async with client.running(repository) as asking:
        prepared = [asking.prepare("m", [[text]], datatype="BYTES") for text in ("a", "b", "c")]
        prepared[1][0].inputs[0].data = b"\x09\0\0\0b"
        first, broken, last = await asking.ask_all(prepared)
        assert [client.array(each).tolist() for each in (first, last)] == [[["a"]], [["c"]]]
        assert client.refusal(broken).message.startswith("[request id: r] incomplete string data for inference input")
        (counted,) = await asking.engine.statistics("m", "1")
        assert (counted.success.count, counted.failures["OTHER"]) == (2, 1)


async def test_requests_handed_over_together_share_a_batch(repository: pathlib.Path) -> None:
    config = f"max_batch_size: 8 dynamic_batching {{ }} {ONE_INSTANCE}"
    onnx_models.put(repository, "m", onnx_models.add_sub(), config=config)
    async with client.running(repository) as asking:
        rows = [np.full((size, 4), size, np.float32) for size in (1, 3, 4, 2)]
        answers = await asking.ask_all([asking.prepare("m", row, row + 1) for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            assert client.array(answer, "OUTPUT0").tolist() == (2 * row + 1).tolist()
            assert client.array(answer, "OUTPUT1").tolist() == np.full_like(row, -1).tolist()
        (counted,) = await asking.engine.statistics("m", "")
        assert (counted.inference_count, counted.execution_count, counted.success.count) == (10, 2, 4)
        assert [each.batch_size for each in counted.batches] == [2, 8]


async def test_other_shapes_do_not_share_a_batch(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity(dims=("batch", "any")), config=ONE_INSTANCE)
    async with client.running(repository) as asking:
        rows = [np.ones((1, width), np.float32) for width in (3, 3, 5)]
        answers = await asking.ask_all([asking.prepare("m", row) for row in rows])
        assert [client.array(answer).shape for answer in answers] == [(1, 3), (1, 3), (1, 5)]
        assert (await asking.engine.statistics("m", ""))[0].execution_count == 2


async def test_a_single_request_is_not_copied_and_its_batch_is(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity(), config=ONE_INSTANCE)
    async with client.running(repository) as asking:
        answer = await asking.ask("m", np.ones((2, 4)))
        assert isinstance(answer, border.InferResponse)
        assert isinstance(answer.outputs[0].data, memoryview)


async def test_only_the_wanted_outputs_are_answered(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.add_sub(), config=ONE_INSTANCE)
    async with client.running(repository) as asking:
        row = np.arange(4, dtype=np.float32).reshape(1, 4)
        one = [border.RequestedOutput("OUTPUT1")]
        best = [border.RequestedOutput("OUTPUT0", classification=2)]
        answers = await asking.ask_all(
            [asking.prepare("m", row, row, outputs=one), asking.prepare("m", row, row, outputs=best)]
        )
        assert client.array(answers[0], "OUTPUT1").tolist() == [[0, 0, 0, 0]]
        assert client.array(answers[1], "OUTPUT0").tolist() == [["6.000000:3", "4.000000:2"]]
        assert [len(answer.outputs) for answer in answers if isinstance(answer, border.InferResponse)] == [1, 1]


async def test_labels_name_the_classes(repository: pathlib.Path) -> None:
    config = 'max_batch_size: 4 output { name: "OUTPUT" data_type: TYPE_FP32 dims: 4 label_filename: "names.txt" }'
    directory = onnx_models.put(repository, "m", onnx_models.identity(), config=config)
    (directory / "names.txt").write_text("cat\ndog\n")
    async with client.running(repository) as asking:
        answer = await asking.ask("m", [[1, 9, 0, 5]], outputs=[border.RequestedOutput("OUTPUT", classification=3)])
        assert client.array(answer).tolist() == [["9.000000:1:dog", "5.000000:3", "1.000000:0:cat"]]


async def test_literal_shapes_and_scalars(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "fixed", onnx_models.identity(dims=(2, 3)))
    onnx_models.put(repository, "scalar", onnx_models.identity(dims=()))
    onnx_models.put(repository, "empty", onnx_models.identity(dims=("any", "wide", 2)), config="max_batch_size: 0")
    async with client.running(repository) as asking:
        assert client.array(await asking.ask("fixed", np.ones((2, 3)))).shape == (2, 3)
        assert client.array(await asking.ask("scalar", [5])).tolist() == [5]
        assert (await asking.engine.model_metadata("scalar", "")).outputs[0].shape == (1,)
        assert client.array(await asking.ask("empty", np.ones((1, 0, 2)))).shape == (1, 0, 2)


async def test_a_failing_run_fails_its_batch_and_the_model_goes_on(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.picky(), config=ONE_INSTANCE)
    async with client.running(repository) as asking:
        failed = client.refusal(await asking.ask("m", [[9]], datatype="INT64", id="x"))
        assert failed.kind is border.ErrorKind.INTERNAL
        assert failed.message.startswith("[request id: x] onnx runtime error: ")
        assert client.array(await asking.ask("m", [[3]], datatype="INT64")).tolist() == [[30]]
        (counted,) = await asking.engine.statistics("m", "")
        assert (counted.success.count, counted.fail.count, counted.failures["BACKEND"]) == (1, 1, 1)


async def test_whatever_is_handed_over_is_answered(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity())
    async with client.running(repository) as asking:
        prepared = [asking.prepare("m", np.ones((1, 4))) for _ in range(3)]
        prepared[0][0].inputs[0].shape = ("one", None)  # type: ignore[assignment]  # what a faulty front might send
        prepared[1][0].model = "nope"
        malformed, unknown, good = await asking.ask_all(prepared)
        assert client.refusal(malformed).kind is border.ErrorKind.INVALID_ARGUMENT
        assert client.refusal(unknown).message == "Request for unknown model: 'nope' is not found"
        assert client.array(good).tolist() == [[1, 1, 1, 1]]


async def _occupied(asking: client.Client, model: str) -> asyncio.Future[client.Answer]:
    """Makes the model's one instance run for a while."""
    request, answered = asking.prepare(model, np.ones((1, 4)))
    asking.engine.submit([request])
    await asking.until(lambda: _none_waits(asking, model))
    return answered


# A real model must keep its instance busy while others wait.
@pytest.mark.slow
async def test_the_cancelled_and_the_late_never_run(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.slow(), config=f"max_batch_size: 1 {ONE_INSTANCE}")
    async with client.running(repository) as asking:
        running = await _occupied(asking, "m")
        late = asking.prepare("m", np.ones((1, 4)), deadline_s=asyncio.get_running_loop().time())
        gone = asking.prepare("m", np.ones((1, 4)))
        good = asking.prepare("m", np.ones((1, 4)))
        gone[0].cancel()
        answers = await asking.ask_all([late, gone, good])
        assert client.refusal(answers[0]).message == "Request timeout expired"
        assert client.refusal(answers[0]).kind is border.ErrorKind.UNAVAILABLE
        assert client.refusal(answers[1]).kind is border.ErrorKind.CANCELLED
        assert client.array(answers[2]).shape == client.array(await running).shape
        (counted,) = await asking.engine.statistics("m", "")
        assert counted.execution_count == 2
        assert (counted.failures["REJECTED"], counted.failures["CANCELED"]) == (1, 1)


async def test_a_deadline_ends_waiting_for_company(repository: pathlib.Path) -> None:
    config = (
        f"max_batch_size: 8 dynamic_batching {{ max_queue_delay_microseconds: 18446744073709551615 }} {ONE_INSTANCE}"
    )
    onnx_models.put(repository, "m", onnx_models.identity(), config=config)
    async with client.running(repository) as asking:
        patient = asking.prepare("m", np.ones((1, 4)))
        asking.engine.submit([patient[0]])
        hasty = await asking.ask("m", np.ones((1, 4)), deadline_s=asyncio.get_running_loop().time() + 0.01)
        assert client.refusal(hasty).message == "Request timeout expired"
        assert not patient[1].done()
        full = await asking.ask("m", np.ones((7, 4)))
        assert client.array(full).shape == (7, 4)
        assert client.array(await patient[1]).shape == (1, 4)
        assert (await asking.engine.statistics("m", ""))[0].execution_count == 1


@pytest.mark.slow
async def test_a_full_queue_refuses_the_rest(repository: pathlib.Path) -> None:
    config = (
        "max_batch_size: 1 dynamic_batching { preferred_batch_size: 1 "
        f"default_queue_policy {{ max_queue_size: 2 }} }} {ONE_INSTANCE}"
    )
    onnx_models.put(repository, "m", onnx_models.slow(), config=config)
    async with client.running(repository) as asking:
        running = await _occupied(asking, "m")
        answers = await asking.ask_all([asking.prepare("m", np.ones((1, 4)), id=str(index)) for index in range(3)])
        assert client.refusal(answers[2]).message == "[request id: 2] Exceeds maximum queue size"
        assert client.refusal(answers[2]).kind is border.ErrorKind.UNAVAILABLE
        assert [client.array(each).shape for each in (*answers[:2], await running)] == [(1, 4)] * 3


# A real model must keep its instance busy while others wait.
@pytest.mark.slow
async def test_levels_are_served_in_order(repository: pathlib.Path) -> None:
    config = (
        "max_batch_size: 1 dynamic_batching { priority_levels: 3 default_priority_level: 2 "
        f"priority_queue_policy {{ key: 3 value {{ max_queue_size: 1 }} }} }} {ONE_INSTANCE}"
    )
    onnx_models.put(repository, "m", onnx_models.slow(200), config=config)
    async with client.running(repository) as asking:
        running = await _occupied(asking, "m")
        order: list[str] = []
        prepared = [
            asking.prepare("m", np.ones((1, 4)), id=str(index), parameters={"priority": priority})
            for index, priority in enumerate((3, 9, 1, 3, 2, 1))
        ]
        for request, answered in prepared:
            answered.add_done_callback(lambda _, name=request.id: order.append(name))  # type: ignore[misc]  # bound early
        answers = await asking.ask_all(prepared)
        await running
        await asking.until(lambda: len(order) == 6)
        assert order == ["3", "2", "5", "1", "4", "0"]  # "3" found its level full
        assert client.refusal(answers[3]).message == "[request id: 3] Exceeds maximum queue size"


async def test_order_is_kept_over_several_instances(repository: pathlib.Path) -> None:
    config = "max_batch_size: 2 dynamic_batching { preserve_ordering: true } instance_group { count: 3 kind: KIND_CPU }"
    onnx_models.put(repository, "m", onnx_models.slow(2000), config=config)
    async with client.running(repository) as asking:
        order: list[int] = []
        prepared = [asking.prepare("m", np.ones((1 + index % 2, 4))) for index in range(30)]
        for index, (_, answered) in enumerate(prepared):
            answered.add_done_callback(lambda _, index=index: order.append(index))  # type: ignore[misc]  # bound early
        await asking.ask_all(prepared)
        await asking.until(lambda: len(order) == 30)
        assert order == list(range(30))


@pytest.mark.slow
async def test_drain_answers_what_was_accepted_and_refuses_the_rest(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.slow(), config=f"max_batch_size: 1 {ONE_INSTANCE}")
    async with client.running(repository) as asking:
        running = await _occupied(asking, "m")
        request, queued = asking.prepare("m", np.ones((1, 4)))
        asking.engine.submit([request])
        draining = asyncio.ensure_future(asking.engine.drain(client.WIDE_S))
        await asking.until(lambda: _unready(asking))
        too_late = client.refusal(await asking.ask("m", np.ones((1, 4))))
        assert too_late.kind is border.ErrorKind.UNAVAILABLE
        assert (
            "Server is stopping, scheduler for model has stopped accepting new inference requests" in too_late.message
        )
        assert await draining
        assert running.done()
        assert queued.done()
        assert [client.array(await each).shape for each in (running, queued)] == [(1, 4)] * 2


@pytest.mark.slow
async def test_close_answers_even_what_never_ran(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.slow(), config=f"max_batch_size: 1 {ONE_INSTANCE}")
    async with client.running(repository) as asking:
        running = await _occupied(asking, "m")
        request, queued = asking.prepare("m", np.ones((1, 4)))
        asking.engine.submit([request])
        assert not await asking.engine.drain(0.0)
        await asking.engine.close()
        assert "Server is stopping" in client.refusal(await queued).message
        assert client.array(await running).shape == (1, 4)


@pytest.mark.slow
def test_an_event_loop_that_is_gone_harms_nobody(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.slow(), config=f"max_batch_size: 1 {ONE_INSTANCE}")
    engine = core.Core.create(core.Options(repositories=(repository,)))

    async def ask_and_leave() -> None:
        await engine.start()
        asking = client.Client(engine)
        engine.submit([asking.prepare("m", np.ones((1, 4)))[0]])

    async def ask_again() -> None:
        try:
            assert client.array(await client.Client(engine).ask("m", np.ones((1, 4)))).shape == (1, 4)
        finally:
            await engine.close()

    asyncio.run(ask_and_leave())
    asyncio.run(ask_again())


RESHAPED = """
max_batch_size: 4
input { name: "INPUT" data_type: TYPE_FP32 dims: [2, 2] reshape { shape: 4 } }
output { name: "OUTPUT" data_type: TYPE_FP32 dims: [1, 2, 2] reshape { shape: 4 } }
dynamic_batching { } instance_group { count: 1 }
"""


async def test_a_reshape_is_between_clients_and_the_model(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity(), config=RESHAPED)
    async with client.running(repository) as asking:
        metadata = await asking.engine.model_metadata("m", "")
        assert (metadata.inputs[0].shape, metadata.outputs[0].shape) == ((-1, 2, 2), (-1, 1, 2, 2))
        rows = [np.full((size, 2, 2), size, np.float32) for size in (1, 2, 1)]
        answers = await asking.ask_all([asking.prepare("m", each) for each in rows])
        for row, answer in zip(rows, answers, strict=True):
            assert client.array(answer).tolist() == row[:, np.newaxis].tolist()
        refused = client.refusal(await asking.ask("m", np.ones((1, 4))))
        assert "Expected [-1,2,2], got [1,4]" in refused.message


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
async def test_scalars_of_a_batch_are_tensors_of_one_element(datatype: str, repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity(datatype, dims=("batch",)))
    async with client.running(repository) as asking:
        config = await asking.engine.model_config("m", "")
        assert (list(config.input[0].dims), list(config.input[0].reshape.shape)) == ([1], [])
        array = np.array([["5"], ["6"]], dtype=object) if datatype == "BYTES" else np.array([[5], [6]], np.float32)
        answers = await asking.ask_all([asking.prepare("m", array, datatype=datatype) for _ in range(2)])
        assert [client.array(answer).tolist() for answer in answers] == [array.tolist()] * 2


async def test_a_scalar_is_given_as_such_where_the_reshape_says_so(repository: pathlib.Path) -> None:
    config = """
        input { name: "INPUT" data_type: TYPE_FP32 dims: 1 reshape { } }
        output { name: "OUTPUT" data_type: TYPE_FP32 dims: [1, 1] reshape { } }
    """
    onnx_models.put(repository, "m", onnx_models.identity(dims=()), config=config)
    async with client.running(repository) as asking:
        assert client.array(await asking.ask("m", [7])).tolist() == [[7]]


async def test_a_directory_holds_a_model_with_its_external_data(repository: pathlib.Path) -> None:
    onnx_models.put_external(repository, "m", onnx_models.scale(3))
    async with client.running(repository) as asking:
        assert client.array(await asking.ask("m", np.ones((1, 4)))).tolist() == [[3] * 4]


@pytest.mark.parametrize("where", ["../../../secret", "/etc/hostname", "inside/../../../secret"])
async def test_external_data_from_elsewhere_is_refused(where: str, repository: pathlib.Path) -> None:
    (repository.parent / "secret").write_bytes(np.array([42], np.float32).tobytes())
    onnx_models.put(repository, "m", onnx_models.external(onnx_models.scale(2), where))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(
            border.InferenceError, match=r"load failed for model 'm': onnx runtime error: .*xternal data"
        ):
            await asking.engine.load("m", {})


async def test_one_of_several_files_is_chosen_by_name(repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.scale(2), config='default_model_filename: "five.onnx"')
    (directory / "1" / "five.onnx").write_bytes(onnx_models.scale(5))
    (directory / "configs").mkdir()
    (directory / "configs" / "two.pbtxt").write_text("")
    for name, factor in (("", 5), ("two", 2)):
        async with client.running(repository, model_config_name=name) as asking:
            assert client.array(await asking.ask("m", np.ones((1, 4)))).tolist() == [[factor] * 4]


@pytest.mark.parametrize("level", [-1, 0, 1, 2])
async def test_every_level_of_optimisation_computes_the_same(level: int, repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2), config=f"optimization {{ graph {{ level: {level} }} }}")
    async with client.running(repository) as asking:
        assert client.array(await asking.ask("m", np.ones((1, 4)))).tolist() == [[2] * 4]

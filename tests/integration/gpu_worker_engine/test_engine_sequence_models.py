"""Models of sequences: what they are told, their states, and who is refused."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import numpy as np
import pytest

from gpu_worker.engine import border
from tests.support import engine_client as client
from tests.support import onnx_models, sequence_models

# Longer than any test: who is idle is not to depend on how busy the machine is.
PATIENT = "max_sequence_idle_microseconds: 60000000 "
ONE = "instance_group { count: 1 }\n"
TOLD = "max_batch_size: 4\n" + ONE + "sequence_batching { %s " + PATIENT + sequence_models.CONTROLS + "}"
STATE = 'state { input_name: "%s_IN" output_name: "%s_OUT" data_type: TYPE_%s dims: %d %s }'
SUMS = """
max_batch_size: 4
input { name: "INPUT" data_type: TYPE_FP32 dims: 1 }
output { name: "OUTPUT" data_type: TYPE_FP32 dims: 1 }
instance_group { count: %d }
sequence_batching { %s max_sequence_idle_microseconds: 60000000 }
"""
SUM = STATE % ("SUM", "SUM", "FP32", 1, "")

Prepared = tuple[border.InferRequest, "asyncio.Future[client.Answer]"]


def step(
    asking: client.Client, name: int | str, value: Any = 0, *bounds: str, datatype: str = "FP32", **more: Any
) -> Prepared:
    """A request of that sequence; `bounds` are `start` and `end`."""
    parameters = {"sequence_id": name, **{f"sequence_{each}": True for each in bounds}, **more}
    return asking.prepare("m", [[value]], datatype=datatype, parameters=parameters)


async def asked(asking: client.Client, *args: Any, **more: Any) -> client.Answer:
    return (await asking.ask_all([step(asking, *args, **more)]))[0]


def told(answer: client.Answer) -> list[Any]:
    """Start, end, ready, id, place and size as the model was told."""
    names = ("TOLD_START", "TOLD_END", "TOLD_READY", "TOLD_ID", "PLACE", "SIZE")
    return [client.array(answer, name).item() for name in names]


@pytest.mark.parametrize("strategy", ["", "direct { }", "oldest { max_candidate_sequences: 2 }"])
async def test_a_model_is_told_where_sequences_begin_and_end(strategy: str, repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", sequence_models.told(), config=TOLD % (strategy, "UINT64"))
    async with client.running(repository) as asking:
        steps = [step(asking, 2**64 - 1, 5, *bounds) for bounds in (("start",), (), ("end",))]
        answers = await asking.ask_all(steps)
        assert [told(answer) for answer in answers] == [
            [1, -1, True, 2**64 - 1, 1, 1],
            [0, -1, True, 2**64 - 1, 1, 1],
            [0, 1, True, 2**64 - 1, 1, 1],
        ]
        assert [client.array(answer).item() for answer in answers] == [5, 5, 5]
        (found,) = await asking.engine.statistics("m", "")
        assert (found.success.count, found.inference_count, found.execution_count, found.in_flight) == (3, 3, 3, 0)
        metadata = await asking.engine.model_metadata("m", "")
        assert [each.name for each in metadata.inputs] == ["INPUT"]
        assert {"sequence", "sequence(string_id)"} <= set((await asking.engine.server_metadata()).extensions)


async def test_slots_are_rows_and_those_without_a_request_are_not_ready(repository: pathlib.Path) -> None:
    delay = "direct { max_queue_delay_microseconds: 60000000 minimum_slot_utilization: 0.5 }"
    onnx_models.put(repository, "m", sequence_models.told("INT32"), config=TOLD % (delay, "INT32"))
    async with client.running(repository) as asking:
        begun = await asking.ask_all([step(asking, name, name, "start") for name in (7, 8)])
        begun += await asking.ask_all([step(asking, name, name, "start") for name in (9, 10)])
        assert [told(answer)[3:5] for answer in begun] == [[7, 1], [8, 2], [9, 3], [10, 4]]
        answers = await asking.ask_all([step(asking, name, name) for name in (10, 8)])
        assert [told(answer) for answer in answers] == [[0, -1, True, 10, 4, 4], [0, -1, True, 8, 2, 4]]
        assert [client.array(answer).item() for answer in answers] == [10, 8]
        (found,) = await asking.engine.statistics("m", "")
        assert found.inference_count == 6
        assert [batch.batch_size for batch in found.batches] == [2, 4]


async def test_oldest_batches_are_dense(repository: pathlib.Path) -> None:
    strategy = "oldest { max_candidate_sequences: 8 preferred_batch_size: 3 max_queue_delay_microseconds: 60000000 }"
    onnx_models.put(repository, "m", sequence_models.told("BYTES"), config=TOLD % (strategy, "STRING"))
    async with client.running(repository) as asking:
        answers = await asking.ask_all([step(asking, name, 1, "start") for name in ("a", "b", 3)])
        assert [told(answer)[3:] for answer in answers] == [["a", 1, 3], ["b", 2, 3], ["3", 3, 3]]
        answers = await asking.ask_all([step(asking, name, 1) for name in (3, "b", "a")])
        assert sorted(told(answer)[3] for answer in answers) == ["3", "a", "b"]


async def test_models_that_do_not_batch_have_one_slot(repository: pathlib.Path) -> None:
    config = ONE + "sequence_batching { " + PATIENT + sequence_models.CONTROLS % "INT64" + "}"
    onnx_models.put(
        repository, "m", sequence_models.told("INT64", batched=False), config="max_batch_size: 0\n" + config
    )
    async with client.running(repository, auto_complete=True) as asking:
        prepared = [
            asking.prepare("m", [name], parameters={"sequence_id": name, "sequence_start": True, "sequence_end": True})
            for name in (1, 2, 3)
        ]
        assert [told(answer)[3] for answer in await asking.ask_all(prepared)] == [1, 2, 3]


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 3 preserve_ordering: true }"])
@pytest.mark.parametrize("instances", [1, 2])
async def test_states_go_from_one_request_to_the_next(instances: int, strategy: str, repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", sequence_models.sums(), config=SUMS % (instances, strategy + SUM))
    async with client.running(repository) as asking:
        steps = [
            step(asking, name, 10**name, *bounds)
            for bounds in (("start",), (), (), ("end",), ("start", "end"))
            for name in (1, 2, 3, 4, 5, 6)
        ]
        answers = await asking.ask_all(steps)
        sums = [client.array(answer).item() for answer in answers]
        assert sums == [times * 10**name for times in (1, 2, 3, 4, 1) for name in (1, 2, 3, 4, 5, 6)]
        (found,) = await asking.engine.statistics("m", "")
        assert found.success.count == 30
        assert (found.pending, found.in_flight) == (0, 0)
        metadata = await asking.engine.model_metadata("m", "")
        assert [each.name for each in metadata.outputs] == ["OUTPUT"]


async def test_states_that_are_outputs_are_answered_too(repository: pathlib.Path) -> None:
    config = (SUMS % (1, SUM)).replace('name: "OUTPUT"', 'name: "SUM_OUT"')
    onnx_models.put(repository, "m", sequence_models.sums(), config=config)
    async with client.running(repository) as asking:
        await asked(asking, 1, 2, "start")
        assert client.array(await asked(asking, 1, 3), "SUM_OUT").item() == 5


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
async def test_states_may_grow_and_share_batches_only_with_their_like(datatype: str, repository: pathlib.Path) -> None:
    typed = "STRING" if datatype == "BYTES" else datatype
    initial = f'initial_state {{ name: "none" data_type: TYPE_{typed} dims: 0 zero_data: true }}'
    config = (
        "max_batch_size: 4\n"
        + ONE
        + "sequence_batching { "
        + PATIENT
        + STATE % ("PAST", "PAST", typed, -1, initial)
        + "}"
    )
    onnx_models.put(repository, "m", sequence_models.history(datatype), config=config)
    cast = str if datatype == "BYTES" else float
    async with client.running(repository) as asking:
        values = {name: [cast(10 * name + index) for index in range(name)] for name in (1, 2, 3, 4)}
        steps = {
            name: [
                step(asking, name, value, *(["start"] if not index else []), datatype=datatype)
                for index, value in enumerate(each)
            ]
            for name, each in values.items()
        }
        answers = await asking.ask_all([each for name in (3, 1, 4, 2) for each in steps[name]])
        last = [answers[index] for index in (2, 3, 7, 9)]
        assert [client.array(answer).tolist() for answer in last] == [[values[name]] for name in (3, 1, 4, 2)]


async def test_an_initial_state_may_come_from_a_file(repository: pathlib.Path) -> None:
    initial = 'initial_state { name: "file" data_type: TYPE_FP32 dims: 1 data_file: "hundred" }'
    directory = onnx_models.put(
        repository, "m", sequence_models.sums(), config=SUMS % (1, STATE % ("SUM", "SUM", "FP32", 1, initial))
    )
    (directory / "initial_state").mkdir()
    (directory / "initial_state" / "hundred").write_bytes(np.array([100], "<f4").tobytes())
    async with client.running(repository, control=client.EXPLICIT) as asking:
        await asking.engine.load("m", {})
        assert client.array(await asked(asking, 1, 1, "start")).item() == 101
        assert client.array(await asked(asking, 1, 1)).item() == 102
        assert client.array(await asked(asking, 1, 1, "start")).item() == 101
        (directory / "initial_state" / "hundred").write_bytes(b"short")
        with pytest.raises(border.InferenceError, match="has 5 bytes or more, expected 4"):
            await asking.engine.load("m", {})


async def test_a_run_that_fails_leaves_the_state_as_it_was(repository: pathlib.Path) -> None:
    config = (
        "max_batch_size: 4\n" + ONE + "sequence_batching { " + PATIENT + STATE % ("SUM", "SUM", "INT64", 1, "") + "}"
    )
    onnx_models.put(repository, "m", sequence_models.picky(), config=config)
    async with client.running(repository) as asking:
        assert client.array(await asked(asking, 1, 2, "start", datatype="INT64")).item() == 20
        assert client.refusal(await asked(asking, 1, 9, datatype="INT64")).kind is border.ErrorKind.INTERNAL
        assert client.array(await asked(asking, 1, 3, datatype="INT64")).item() == 50


async def test_who_does_not_say_which_sequence_is_refused(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", sequence_models.told("INT32"), config=TOLD % ("", "INT32"))
    async with client.running(repository) as asking:
        no_id = "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
        for name in (0, ""):
            assert client.refusal(await asked(asking, name, 1, "start")).message == no_id
        for name in (5, "five"):
            refused = client.refusal(await asked(asking, name))
            words = (
                f"inference request for sequence {name} to model 'm' must specify the START flag on the first request"
            )
            if name == 5:
                assert refused.message == f"{words} of the sequence"
            assert refused.kind is border.ErrorKind.INVALID_ARGUMENT
        for name in ("five", 2**31):
            refused = client.refusal(await asked(asking, name, 1, "start"))
            assert refused.message.startswith(
                "sequence_id of a request to model 'm' must be an integer up to 2147483647"
            )
        refused = client.refusal(await asked(asking, "x" * 129, 1, "start"))
        assert refused.kind is border.ErrorKind.UNSUPPORTED
        assert refused.message == "string correlation ID cannot be longer than 128 characters"
        batch = asking.prepare("m", [[1], [2]], parameters={"sequence_id": 1, "sequence_start": True})
        refused = client.refusal((await asking.ask_all([batch]))[0])
        assert refused.message == (
            "inference request to model 'm' must specify batch-size 1 due to requirements of sequence batcher"
        )
        (found,) = await asking.engine.statistics("m", "")
        assert (found.fail.count, found.failures["OTHER"], found.in_flight) == (8, 8, 0)


async def test_an_ended_sequence_needs_a_new_start(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", sequence_models.sums(), config=SUMS % (1, SUM))
    async with client.running(repository) as asking:
        answers = await asking.ask_all(
            [step(asking, 1, 1, "start"), step(asking, 1, 1, "end"), step(asking, 1, 1), step(asking, 1, 7, "start")]
        )
        assert [client.array(answers[index]).item() for index in (0, 1, 3)] == [1, 2, 7]
        assert "for sequence 1 to model 'm' must specify the START flag" in client.refusal(answers[2]).message


async def test_an_idle_sequence_makes_room_and_is_unknown_afterwards(repository: pathlib.Path) -> None:
    config = (SUMS % (1, "oldest { max_candidate_sequences: 1 }" + SUM)).replace("60000000", "1000")
    onnx_models.put(repository, "m", sequence_models.sums(), config=config)
    async with client.running(repository) as asking:
        answers = await asking.ask_all([step(asking, 1, 1, "start"), step(asking, 2, 2, "start")])
        assert [client.array(answer).item() for answer in answers] == [1, 2]
        assert "must specify the START flag" in client.refusal(await asked(asking, 1, 1)).message


async def test_who_waits_in_vain_for_a_slot_is_refused(repository: pathlib.Path) -> None:
    more = "oldest { max_candidate_sequences: 1 }"
    onnx_models.put(repository, "m", sequence_models.sums(), config=SUMS % (1, more + SUM))
    async with client.running(repository) as asking:
        await asked(asking, 1, 1, "start")
        refused = client.refusal(await asked(asking, 2, 1, "start", timeout=1000))
        assert refused.kind is border.ErrorKind.UNAVAILABLE
        assert refused.message == "timeout of the corresponding sequence has been expired"
        late = step(asking, 2, 1, "start")
        late[0].deadline_s = 0.0
        assert client.refusal((await asking.ask_all([late]))[0]).message == "Request timeout expired"
        assert client.array(await asked(asking, 1, 1, timeout=1)).item() == 2
        (found,) = await asking.engine.statistics("m", "")
        assert (found.failures["REJECTED"], found.success.count) == (2, 2)


async def test_a_request_whose_client_has_gone_never_runs(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", sequence_models.sums(), config=SUMS % (1, SUM))
    async with client.running(repository) as asking:
        gone = step(asking, 1, 100)
        gone[0].cancelled = True
        answers = await asking.ask_all([step(asking, 1, 1, "start"), gone, step(asking, 1, 1)])
        assert client.refusal(answers[1]).kind is border.ErrorKind.CANCELLED
        assert client.array(answers[2]).item() == 2


async def test_what_waits_is_served_before_a_model_stops(repository: pathlib.Path) -> None:
    more = "oldest { max_candidate_sequences: 1 }"
    onnx_models.put(repository, "m", sequence_models.sums(), config=SUMS % (2, more + SUM))
    async with client.running(repository) as asking:
        prepared = [step(asking, name, name, "start") for name in range(1, 20)]
        asking.engine.submit([request for request, _ in prepared])
        assert await asking.engine.drain(client.WIDE_S)
        assert [client.array(await answer).item() for _, answer in prepared] == list(range(1, 20))
        assert "Server is stopping" in client.refusal(await asked(asking, 1, 1)).message


async def test_sequences_outlive_a_change_of_instances(repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", sequence_models.sums(), config=SUMS % (2, SUM))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        await asking.engine.load("m", {})
        await asking.ask_all([step(asking, name, name, "start") for name in (1, 2, 3)])
        for count, times in ((1, 2), (3, 3)):
            (directory / "config.pbtxt").write_text(SUMS % (count, SUM))
            await asking.engine.load("m", {})
            answers = await asking.ask_all([step(asking, name, name) for name in (1, 2, 3)])
            assert [client.array(answer).item() for answer in answers] == [times * name for name in (1, 2, 3)]


async def test_warm_up_tells_the_controls_and_the_states(repository: pathlib.Path) -> None:
    warm = """
        model_warmup { name: "w" batch_size: 2 inputs { key: "INPUT" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } }
    """
    onnx_models.put(repository, "m", sequence_models.told(), config=TOLD % ("", "UINT64") + warm)
    onnx_models.put(repository, "sums", sequence_models.sums(), config=SUMS % (1, SUM) + warm)
    async with client.running(repository) as asking:
        assert await asking.engine.ready()


async def test_a_configuration_is_completed(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", sequence_models.told(), config=(TOLD % ("", "UINT64")).replace(PATIENT, ""))
    oldest = "oldest { max_candidate_sequences: 4 }"
    onnx_models.put(repository, "o", sequence_models.told(), config=TOLD % (oldest, "UINT64"))
    async with client.running(repository) as asking:
        found = (await asking.engine.model_config("m", "")).sequence_batching
        assert found.max_sequence_idle_microseconds == 1_000_000
        assert found.WhichOneof("strategy_choice") is None
        config = await asking.engine.model_config("o", "")
        assert list(config.sequence_batching.oldest.preferred_batch_size) == [4]
        assert not config.HasField("dynamic_batching")


GOOD = TOLD % ("oldest { max_candidate_sequences: 4 }", "UINT64")


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("max_candidate_sequences: 4", "", "oldest.max_candidate_sequences must be 1 or more"),
        (
            "max_candidate_sequences: 4",
            "max_candidate_sequences: 4 preferred_batch_size: 5",
            "must lie between 1 and 4",
        ),
        ("oldest { max_candidate_sequences: 4 }", "direct { minimum_slot_utilization: 2 }", "between 0 and 1"),
        ('name: "START"', 'name: "NONE"', "'NONE' is not one of the model's inputs"),
        ('name: "START"', 'name: "END"', "must be named once"),
        ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "must not repeat a kind"),
        ("int32_false_true: [0, 1]", "int32_false_true: [0]", "with two values"),
        ("int32_false_true: [0, 1]", "", "with two values"),
        ("int32_false_true: [0, 1]", "fp32_false_true: [0, 1]", "control_input 'START' is FP32, the model has INT32"),
        ("TYPE_UINT64", "TYPE_FP32", "data_type of 32 or 64 bit integers or strings"),
        ("TYPE_UINT64", "TYPE_INT32", "control_input 'ID' is INT32, the model has UINT64"),
        ("control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }", "", "must have one control, not 0"),
        (
            'control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } }',
            "",
            "the model's input 'READY' is missing",
        ),
        (
            "max_batch_size: 4",
            "max_batch_size: 4 response_cache { enable: true }",
            "response_cache must not be enabled",
        ),
        ("oldest {", STATE % ("X", "X", "FP32", 1, "") + "oldest {", "'X_IN' is not one of the model's inputs"),
    ],
)
async def test_what_cannot_be_is_refused_at_load(old: str, new: str, fragment: str, repository: pathlib.Path) -> None:
    assert old in GOOD
    config = GOOD.replace(old, new, 1) + 'input { name: "INPUT" data_type: TYPE_FP32 dims: 1 }'
    onnx_models.put(repository, "m", sequence_models.told(), config=config)
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError) as refused:
            await asking.engine.load("m", {})
        assert fragment in refused.value.message
        assert refused.value.kind is border.ErrorKind.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("state", "fragment"),
    [
        (STATE % ("SUM", "SUM", "FP32", 2, ""), "state 'SUM_IN' has shape [-1, 2], the model has [-1, 1]"),
        (STATE % ("SUM", "SUM", "INT32", 1, ""), "state 'SUM_IN' is INT32, the model has FP32"),
        (STATE % ("SUM", "NO", "FP32", 1, ""), "state.output_name 'NO_OUT' is not one of the model's outputs"),
        (STATE % ("SUM", "SUM", "FP32", -2, ""), "must be -1 or more"),
        (STATE % ("SUM", "SUM", "FP32", 1, "initial_state { }"), "must have the data_type of the state"),
        (
            STATE % ("SUM", "SUM", "FP32", 1, "initial_state { data_type: TYPE_FP32 dims: 2 zero_data: true }"),
            "dims [2] of initial_state of 'SUM_IN' must fit [1]",
        ),
        (
            STATE % ("SUM", "SUM", "FP32", 1, "initial_state { data_type: TYPE_FP32 dims: 1 }"),
            "must have zero_data or data_file",
        ),
        (
            STATE % ("SUM", "SUM", "FP32", 1, 'initial_state { data_type: TYPE_FP32 dims: 1 data_file: "../x" }'),
            "must stay inside",
        ),
        (
            STATE % ("SUM", "SUM", "FP32", 1, 'initial_state { data_type: TYPE_FP32 dims: 1 data_file: "x" }'),
            "cannot be read",
        ),
        (SUM.replace("dims: 1", "dims: 1 initial_state { } initial_state { }"), "one initial_state at most"),
        (SUM + SUM, "must be named once"),
    ],
)
async def test_states_that_cannot_be_are_refused_at_load(state: str, fragment: str, repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", sequence_models.sums(), config=SUMS % (1, state))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError) as refused:
            await asking.engine.load("m", {})
        assert fragment in refused.value.message


async def test_iterative_sequences_are_refused_by_name(repository: pathlib.Path) -> None:
    config = SUMS % (1, "iterative_sequence: true " + SUM)
    onnx_models.put(repository, "m", sequence_models.sums(), config=config)
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(
            border.InferenceError, match=r"sequence_batching.iterative_sequence \(every request"
        ) as refused:
            await asking.engine.load("m", {})
        assert refused.value.kind is border.ErrorKind.UNSUPPORTED

from __future__ import annotations

import asyncio
import gc
import json
import os
import pathlib
import shutil
import threading

import numpy as np
import pytest

from gpu_worker import core, registry
from gpu_worker.engine import border
from tests.support import engine_client as client
from tests.support import onnx_models

CONFIG = {
    "max_batch_size": 2,
    "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": ["4"]}],
    "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [4]}],
}


def warmed(data: str, name: str = "INPUT", size: int = 2) -> str:
    """A configuration that warms a model up with such data."""
    wanted = f'key: "{name}" value {{ data_type: TYPE_FP32 dims: 4 {data} }}'
    return f'model_warmup {{ name: "w" batch_size: {size} count: 3 inputs {{ {wanted} }} }}'


async def _factor(asking: client.Client, model: str, version: str = "") -> float:
    return float(client.array(await asking.ask(model, np.ones((1, 4)), version=version))[0, 0])


def _sessions() -> int:
    """ONNX sessions alive in this process."""
    gc.collect()
    return sum(type(each).__name__ == "InferenceSession" for each in gc.get_objects())


async def _states(asking: client.Client, *, ready: bool = False) -> list[tuple[str, str, str, str]]:
    return [(each.name, each.version, each.state, each.reason) for each in await asking.engine.index(ready=ready)]


async def _told(asking: client.Client, state: tuple[str, str, str, str]) -> bool:
    return state in await _states(asking)


async def _taken_up(engine: core.Core, model: str) -> None:
    """Returns while a load of the model is under way."""
    known = engine._models._models
    while model not in known or not known[model].calls:
        await asyncio.to_thread(int)


async def _begun(asking: client.Client) -> bool:
    return bool((await _states(asking))[0][2])


async def test_a_model_goes_through_its_life(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    onnx_models.put(repository, "untouched", onnx_models.scale(3))
    before = _sessions()
    async with client.running(repository, control=client.EXPLICIT) as asking:
        engine = asking.engine
        assert await engine.ready()
        assert await _states(asking) == [("m", "", "", ""), ("untouched", "", "", "")]
        await engine.load("m", {})
        assert await _states(asking) == [("m", "1", "READY", ""), ("untouched", "", "", "")]
        assert await _states(asking, ready=True) == [("m", "1", "READY", "")]
        assert (
            await engine.model_ready("m", ""),
            await engine.model_ready("m", "1"),
            await engine.model_ready("m", "2"),
        ) == (
            True,
            True,
            False,
        )
        assert await _factor(asking, "m") == 2
        assert _sessions() == before + 1
        threads = threading.active_count()
        await engine.unload("m", unload_dependents=False)
        assert not await engine.model_ready("m", "")
        await asking.until(lambda: _told(asking, ("m", "1", "UNAVAILABLE", "unloaded")))
        assert _sessions() == before
        assert threading.active_count() <= threads
        refused = client.refusal(await asking.ask("m", np.ones((1, 4))))
        assert (refused.kind, refused.message) == (
            border.ErrorKind.NOT_FOUND,
            "Request for unknown model: 'm' has no available versions",
        )
        with pytest.raises(border.InferenceError, match=r"^Request for unknown model: 'm' is not found$"):
            await engine.model_metadata("m", "")
        with pytest.raises(border.InferenceError, match=r"^requested model 'm' is not available$"):
            await engine.statistics("m", "")
        await engine.unload("m", unload_dependents=True)
        assert ("m", "1", "UNAVAILABLE", "unloaded") in await _states(asking)
        await engine.load("m", {})
        assert await _factor(asking, "m") == 2


async def test_versions_serve_side_by_side(repository: pathlib.Path) -> None:
    for version in (1, 2, 10):
        onnx_models.put(
            repository, "m", onnx_models.scale(version), version=version, config="version_policy { all { } }"
        )
    async with client.running(repository) as asking:
        assert (await asking.engine.model_metadata("m", "")).versions == ("1", "2", "10")
        assert [await _factor(asking, "m", version) for version in ("", "1", "2", "10")] == [10, 1, 2, 10]
        missing = client.refusal(await asking.ask("m", np.ones((1, 4)), version="3"))
        assert missing.message == "Request for unknown model: 'm' version 3 is not found"
        assert {each.version for each in await asking.engine.statistics("", "")} == {"1", "2", "10"}


async def test_a_reload_takes_new_files_and_drops_the_old(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        sessions = _sessions()
        assert await _factor(asking, "m") == 2
        await asking.engine.load("m", {})
        assert (await asking.engine.statistics("m", ""))[0].success.count == 1, (
            "nothing changed: nothing is loaded anew"
        )
        onnx_models.put(repository, "m", onnx_models.scale(5), version=2)
        await asking.engine.load("m", {})
        assert await _factor(asking, "m") == 5
        assert await _states(asking) == [("m", "2", "READY", "")]
        await asking.until(lambda: _sessions() == sessions)


async def test_another_file_of_equal_size_and_time_is_loaded(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = onnx_models.put(repository, "m", onnx_models.scale(2)) / "1" / "model.onnx"
    second = onnx_models.put(tmp_path / "aside", "m", onnx_models.scale(5)) / "1" / "model.onnx"
    assert first.stat().st_size == second.stat().st_size
    for file in (first, second):
        os.utime(file, ns=(10**18, 10**18))
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        assert await _factor(asking, "m") == 2
        second.replace(first)
        await asking.engine.load("m", {})
        assert await _factor(asking, "m") == 5


async def test_a_failed_reload_keeps_the_old(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("*",)) as asking:
        onnx_models.put(repository, "m", b"not a model", version=2)
        with pytest.raises(border.InferenceError) as failed:
            await asking.engine.load("m", {})
        assert failed.value.kind is border.ErrorKind.INVALID_ARGUMENT
        assert failed.value.message.startswith("load failed for model 'm': onnx runtime error: ")
        assert await _states(asking) == [("m", "1", "READY", "")]
        assert await _factor(asking, "m") == 2
        assert await asking.engine.ready()


@pytest.mark.slow
async def test_requests_in_flight_outlive_an_unload(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.slow(), config="max_batch_size: 1 instance_group { count: 1 }")
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        prepared = [asking.prepare("m", np.ones((1, 4))) for _ in range(2)]
        asking.engine.submit([request for request, _ in prepared])
        await asking.engine.unload("m", unload_dependents=False)
        assert ("m", "1", "UNLOADING", "") in await _states(asking)
        assert not await asking.engine.model_ready("m", "")
        reload = asyncio.ensure_future(asking.engine.load("m", {}))
        assert [client.array(await answered).shape for _, answered in prepared] == [(1, 4)] * 2
        await reload
        assert await _states(asking) == [("m", "1", "READY", "")]


async def test_loads_of_one_model_follow_each_other(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    before = _sessions()
    async with client.running(repository, control=client.EXPLICIT) as asking:
        engine = asking.engine
        calls = [engine.load("m", {}), engine.unload("m", unload_dependents=False), engine.load("m", {})]
        await asyncio.gather(*calls, engine.load("m", {}))
        assert await engine.model_ready("m", "")
        assert await _factor(asking, "m") == 2
        await asking.until(lambda: _sessions() == before + 1)


async def test_a_load_goes_on_when_its_caller_leaves(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        call = asyncio.ensure_future(asking.engine.load("m", {}))
        await asking.until(lambda: _begun(asking))
        call.cancel()
        await asking.until(lambda: asking.engine.model_ready("m", ""))


@pytest.mark.parametrize("control", [core.ControlMode.NONE, core.ControlMode.POLL])
async def test_nobody_sends_clients_away_where_nobody_loads_from_outside(
    repository: pathlib.Path, control: core.ControlMode
) -> None:
    """It could not be taken back: any client could so end the service of all others."""
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with client.running(repository, control=control) as asking:
        for model in ("", "m"):
            with pytest.raises(border.InferenceError, match="--model-control-mode=explicit") as caught:
                await asking.engine.leave(model)
            assert caught.value.kind is border.ErrorKind.UNAVAILABLE
            assert not asking.engine.leaving("m")
        assert await asking.engine.ready()


async def test_a_load_whose_caller_left_counts_as_one(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        engine = asking.engine
        await engine.load("m", {})
        await engine.leave("m")
        call = asyncio.ensure_future(engine.load("m", {"config": json.dumps(CONFIG)}))
        await _taken_up(engine, "m")
        call.cancel()
        await asking.until(lambda: not engine.leaving("m"))
        assert await engine.ready()


async def test_an_unload_behind_a_load_is_the_last_word(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        engine = asking.engine
        load = asyncio.ensure_future(engine.load("m", {}))
        await _taken_up(engine, "m")
        await asyncio.gather(load, engine.unload("m", unload_dependents=False))
        assert not await engine.model_ready("m", "")
        assert await engine.ready()


async def test_loads_that_cannot_be_meant_are_not_waited_for(repository: pathlib.Path) -> None:
    async with client.running(repository, control=client.EXPLICIT) as asking:
        for name, parameters in (("m" * 10_000, {}), ("m", {"file:1/model.onnx": b""}), ("m", {"unknown": True})):
            with pytest.raises(border.InferenceError) as failed:
                await asking.engine.load(name, parameters)
            assert failed.value.kind is border.ErrorKind.INVALID_ARGUMENT
        assert await asking.engine.ready()
        assert await _states(asking) == []


async def test_a_missing_model_leaves_no_trace(repository: pathlib.Path) -> None:
    async with client.running(repository, control=client.EXPLICIT) as asking:
        for name in ("nope", "../repository", ""):
            with pytest.raises(border.InferenceError) as failed:
                await asking.engine.load(name, {})
            assert failed.value.kind is border.ErrorKind.INTERNAL
            assert failed.value.message == f"failed to load '{name}', failed to poll from model repository"
        await asking.engine.unload("nope", unload_dependents=False)
        assert await _states(asking) == []


@pytest.mark.parametrize(
    ("config", "kind", "fragment"),
    [
        ('name: "other"', border.ErrorKind.INVALID_ARGUMENT, "config name 'other'"),
        ("sequence_batching { iterative_sequence: true }", border.ErrorKind.UNSUPPORTED, "iterative_sequence"),
        ("instance_group { kind: KIND_GPU gpus: 99 }", border.ErrorKind.INVALID_ARGUMENT, "instance_group"),
        ('default_model_filename: "../../x"', border.ErrorKind.INVALID_ARGUMENT, "must stay inside"),
        ('default_model_filename: "other.onnx"', border.ErrorKind.INVALID_ARGUMENT, "has no file 'other.onnx'"),
        ("optimization { graph { level: 9 } }", border.ErrorKind.INVALID_ARGUMENT, "optimization.graph.level 9"),
        (
            'output { name: "OUTPUT" data_type: TYPE_FP32 dims: [-1, 4] label_filename: "none.txt" }',
            border.ErrorKind.INVALID_ARGUMENT,
            "label_filename of output 'OUTPUT' cannot be read",
        ),
        ('model_warmup { name: "w" count: 10001 }', border.ErrorKind.INVALID_ARGUMENT, "count must be at most 10000"),
        (warmed("zero_data: true", "NOPE"), border.ErrorKind.INVALID_ARGUMENT, "'NOPE' is none of the model's inputs"),
        (warmed(""), border.ErrorKind.INVALID_ARGUMENT, "must have zero_data, random_data or input_data_file"),
        (
            warmed("zero_data: true").replace("dims: 4", "dims: -1"),
            border.ErrorKind.INVALID_ARGUMENT,
            "not be variable",
        ),
        (warmed("zero_data: true").replace("FP32", "INT8"), border.ErrorKind.INVALID_ARGUMENT, "the model has FP32"),
        (warmed("zero_data: true", size=9), border.ErrorKind.INVALID_ARGUMENT, "batch_size must be at most 4, not 9"),
        (warmed('input_data_file: "../x"'), border.ErrorKind.INVALID_ARGUMENT, "must stay inside"),
        (warmed('input_data_file: "none"'), border.ErrorKind.INVALID_ARGUMENT, "cannot be read"),
        (
            'model_warmup { name: "w" batch_size: 1 }',
            border.ErrorKind.INVALID_ARGUMENT,
            "model_warmup 'w' failed: onnx runtime error: ",
        ),
    ],
)
async def test_what_cannot_be_loaded_says_why(
    config: str, kind: border.ErrorKind, fragment: str, repository: pathlib.Path
) -> None:
    onnx_models.put(repository, "m", onnx_models.identity(), config=config)
    before = _sessions()
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError) as failed:
            await asking.engine.load("m", {})
        assert failed.value.kind is kind
        assert failed.value.message.startswith("load failed for model 'm': ")
        assert fragment in failed.value.message
        ((_, _, state, reason),) = await _states(asking)
        assert state == "UNAVAILABLE"
        assert fragment in reason
        assert await _states(asking, ready=True) == []
        assert _sessions() == before


async def test_a_name_in_two_repositories_is_not_served(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    second = tmp_path / "second"
    for root in (repository, second):
        onnx_models.put(root, "m", onnx_models.identity())
    engine = core.Core.create(core.Options(repositories=(repository, second), control=client.EXPLICIT))
    try:
        await engine.start()
        (entry,) = await engine.index(ready=False)
        assert (entry.state, entry.reason) == ("UNAVAILABLE", "model appears in two or more repositories")
        with pytest.raises(border.InferenceError, match=r"failed to load 'm', failed to poll.*two or more") as failed:
            await engine.load("m", {})
        assert failed.value.kind is border.ErrorKind.INTERNAL
        shutil.rmtree(second / "m")
        assert [each.state for each in await engine.index(ready=False)] == [""]
        await engine.load("m", {})
        assert await engine.model_ready("m", "")
    finally:
        await engine.close()


async def test_an_override_holds_until_the_next_load(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2), config="max_batch_size: 8")
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        await asking.engine.load("m", {"config": json.dumps(CONFIG)})
        assert (await asking.engine.model_config("m", "")).max_batch_size == 2
        with pytest.raises(border.InferenceError, match="Invalid config override"):
            await asking.engine.load("m", {"config": "{"})
        assert (await asking.engine.model_config("m", "")).max_batch_size == 2
        await asking.engine.load("m", {})
        assert (await asking.engine.model_config("m", "")).max_batch_size == 8


async def test_files_may_come_with_the_load(
    repository: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    files: dict[str, border.Parameter | bytes] = {"file:7/model.onnx": onnx_models.scale(7)}
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError, match="load parameter 'config' must be given"):
            await asking.engine.load("m", files)
        await asking.engine.load("m", {**files, "config": json.dumps(CONFIG)})
        assert await _factor(asking, "m", "7") == 7
        with pytest.raises(border.InferenceError, match="must stay inside"):
            await asking.engine.load("m", {"config": "{}", "file:../x": b""})
        assert await _factor(asking, "m", "7") == 7
        await asking.engine.unload("m", unload_dependents=False)
        await asking.until(lambda: not list(scratch.glob("*/*")))
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    "parameters", [{"nonsense": "1"}, {"config": 1}, {"file:1/model.onnx": "text", "config": "{}"}]
)
async def test_unknown_load_parameters_are_refused(
    parameters: dict[str, border.Parameter | bytes], repository: pathlib.Path
) -> None:
    onnx_models.put(repository, "m", onnx_models.identity())
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError, match=f"load parameter '{next(iter(parameters))}'") as failed:
            await asking.engine.load("m", parameters)
        assert failed.value.kind is border.ErrorKind.INVALID_ARGUMENT


async def test_without_control_nothing_changes_after_start(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity())
    async with client.running(repository) as asking:
        for call in (asking.engine.load("m", {}), asking.engine.unload("m", unload_dependents=False)):
            with pytest.raises(border.InferenceError) as refused:
                await call
            assert refused.value.kind is border.ErrorKind.UNAVAILABLE
            assert refused.value.message == "explicit model load / unload is not allowed if polling is enabled"
        assert await asking.engine.model_ready("m", "")


async def test_what_clients_asked_for_in_vain_makes_the_server_unready(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "good", onnx_models.identity())
    onnx_models.put(repository, "bad", b"not a model")
    async with client.running(repository, control=client.EXPLICIT) as asking:
        await asking.engine.load("good", {})
        assert await asking.engine.ready()
        for name, ready in (("nowhere", True), ("bad", False)):
            with pytest.raises(border.InferenceError):
                await asking.engine.load(name, {})
            assert await asking.engine.ready() is ready
        await asking.engine.unload("bad", unload_dependents=False)
        assert await asking.engine.ready()


async def test_a_failed_start_is_told_or_shown(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "good", onnx_models.identity())
    onnx_models.put(repository, "bad", b"not a model")
    strict = core.Core.create(core.Options(repositories=(repository,)))
    try:
        with pytest.raises(border.InferenceError, match="failed to load models: bad: load failed for model 'bad'"):
            await strict.start()
        assert not await strict.ready()
    finally:
        await strict.close()
    async with client.running(repository, exit_on_error=False) as asking:
        assert await asking.engine.live()
        assert not await asking.engine.ready()
        assert await asking.engine.model_ready("good", "")
    async with client.running(repository, exit_on_error=False, strict_readiness=False) as asking:
        assert await asking.engine.ready()


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true"])
async def test_a_model_is_warm_before_it_is_ready(data: str, repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity(), config=warmed(data))
    async with client.running(repository) as asking:
        assert (await asking.engine.statistics("m", ""))[0].execution_count == 0, "warm-up is no use"


@pytest.mark.parametrize("items", [1, 2])
async def test_warm_up_runs_what_a_file_says(items: int, repository: pathlib.Path) -> None:
    """The model fails above 3: that it fails, or does not, shows what was fed."""
    for number in (3, 4):
        config = warmed('input_data_file: "rows"').replace("FP32", "INT64").replace("dims: 4", "dims: 1")
        directory = onnx_models.put(repository, f"m{number}", onnx_models.picky(), config=config)
        (directory / "warmup").mkdir()
        (directory / "warmup" / "rows").write_bytes(np.full(items, number, np.int64).tobytes())
    async with client.running(repository, control=client.EXPLICIT) as asking:
        await asking.engine.load("m3", {})
        with pytest.raises(border.InferenceError, match="model_warmup 'w' failed: onnx runtime error: "):
            await asking.engine.load("m4", {})


@pytest.mark.parametrize("size", [0, 7, 24])
async def test_warm_up_refuses_a_file_of_another_size(size: int, repository: pathlib.Path) -> None:
    config = warmed('input_data_file: "rows"').replace("FP32", "INT64").replace("dims: 4", "dims: 1")
    directory = onnx_models.put(repository, "m", onnx_models.picky(), config=config)
    (directory / "warmup").mkdir()
    (directory / "warmup" / "rows").write_bytes(bytes(size))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError, match=f"has {size} bytes, expected 8 for an item or 16 for 2"):
            await asking.engine.load("m", {})


async def test_warm_up_takes_strings_in_their_wire_form(repository: pathlib.Path) -> None:
    config = warmed('input_data_file: "rows"').replace("FP32", "STRING")
    directory = onnx_models.put(repository, "m", onnx_models.identity("BYTES"), config=config)
    rows = directory / "warmup" / "rows"
    rows.parent.mkdir()
    async with client.running(repository, control=client.EXPLICIT) as asking:
        rows.write_bytes(b"\x02\0\0\0ab" * 4)
        await asking.engine.load("m", {})
        rows.write_bytes(b"\x02\0\0\0ab" * 3)
        with pytest.raises(border.InferenceError, match="expected 8 string elements"):
            await asking.engine.load("m", {})
        assert await asking.engine.model_ready("m", "")


# The weights must be large beside the noise of the process.
@pytest.mark.slow
async def test_memory_is_measured_and_given_back(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.weights(64))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        await asking.engine.load("m", {})
        (seen,) = await asking.engine.statistics("m", "")
        ((device, taken_bytes),) = seen.memory_bytes.items()
        assert device == ("CPU", 0)
        assert 48 << 20 < taken_bytes < 400 << 20
        assert seen.load_duration_s > 0
        resident = _resident_bytes()
        await asking.engine.unload("m", unload_dependents=False)
        await asking.until(lambda: _told(asking, ("m", "1", "UNAVAILABLE", "unloaded")))
        assert resident - _resident_bytes() > 32 << 20


def _resident_bytes() -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


async def test_names_that_come_and_go_are_forgotten_in_the_end(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REMEMBERED", 2)
    async with client.running(repository, control=client.EXPLICIT) as asking:
        for index in range(4):
            onnx_models.put(repository, f"m{index}", onnx_models.scale(index))
            await asking.engine.load(f"m{index}", {})
            if index:
                await asking.engine.unload(f"m{index}", unload_dependents=False)
                await asking.until(lambda: not asking.engine._models._tasks)
        assert [state for _, _, state, _ in await _states(asking)] == ["READY", "", "", "UNAVAILABLE"]
        assert await _factor(asking, "m0") == 0

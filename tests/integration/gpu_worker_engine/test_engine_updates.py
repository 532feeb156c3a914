"""What changes in a model touches only what must change."""

from __future__ import annotations

import asyncio
import gc
import json
import pathlib
import threading

import numpy as np
import pytest
from prometheus_client import parser

from gpu_worker import core, loader, metrics, models
from gpu_worker.engine import border, statistics
from gpu_worker.runtime import onnx_runtime, port
from tests.support import engine_client as client
from tests.support import onnx_models

CONFIG = "max_batch_size: 1 instance_group { count: %d kind: KIND_CPU }"


def _sessions() -> int:
    gc.collect()
    return sum(type(each).__name__ == "InferenceSession" for each in gc.get_objects())


def _instances(model: str = "m", version: str = "1") -> int:
    """Threads that serve the version."""
    return sum(thread.name.startswith(f"{model}_{version}_") for thread in threading.enumerate())


async def _until_instances(asking: client.Client, count: int) -> None:
    await asking.until(lambda: _instances() == count)


def _versions(engine: core.Core) -> dict[str, loader.Version]:
    return dict(engine._models._models["m"].versions)


@pytest.mark.parametrize("ordering", ["", "dynamic_batching { preserve_ordering: true }"])
@pytest.mark.slow  # requests are in flight all the while
async def test_a_count_changes_while_requests_run(ordering: str, repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.slow(20_000), config=CONFIG % 2 + ordering)
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        version, sessions = _versions(asking.engine)["1"], _sessions()
        prepared = [asking.prepare("m", np.full((1, 4), index)) for index in range(40)]
        asking.engine.submit([request for request, _ in prepared])
        for count in (5, 1, 3):
            (directory / "config.pbtxt").write_text(CONFIG % count + ordering)
            await asking.engine.load("m", {})
            await _until_instances(asking, count)
            assert (await asking.engine.model_config("m", "")).instance_group[0].count == count
        answers = await asyncio.gather(*(answered for _, answered in prepared))
        assert [client.array(answer)[0, 0] for answer in answers] == list(range(40))
        assert _versions(asking.engine)["1"] is version
        assert _sessions() == sessions
        assert (await asking.engine.statistics("m", ""))[0].success.count == 40


async def test_a_model_that_has_fewer_instances_now_ends_as_any_other(repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.scale(2), config=CONFIG % 4)
    before = _sessions()
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        version = _versions(asking.engine)["1"]
        (directory / "config.pbtxt").write_text(CONFIG % 1)
        await asking.engine.load("m", {})
        assert _versions(asking.engine)["1"] is version
        del version
        await asking.engine.unload("m", unload_dependents=False)
        await asking.until(lambda: _sessions() == before)
        assert _instances() == 0


async def test_groups_come_and_go_beside_those_that_stay(repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.scale(2), config=CONFIG % 1)
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        version, sessions = _versions(asking.engine)["1"], _sessions()
        (directory / "config.pbtxt").write_text(CONFIG % 1 + " instance_group { count: 2 kind: KIND_CPU }")
        await asking.engine.load("m", {})
        assert (_sessions(), _instances()) == (sessions + 1, 3)
        (directory / "config.pbtxt").write_text(CONFIG % 2)
        await asking.engine.load("m", {})
        assert _versions(asking.engine)["1"] is version
        await _until_instances(asking, 2)


async def test_other_words_for_the_same_change_nothing(repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.scale(2), config=CONFIG % 1)
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        version = _versions(asking.engine)["1"]
        (directory / "config.pbtxt").write_text("# a comment\n" + CONFIG % 1)
        await asking.engine.load("m", {})
        assert _versions(asking.engine)["1"] is version


@pytest.mark.parametrize("change", ['metric_tags { key: "a" value: "b" }', "dynamic_batching { }"])
async def test_any_other_change_loads_anew(change: str, repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.scale(2), config=CONFIG % 1)
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        await asking.ask("m", np.ones((1, 4)))
        (directory / "config.pbtxt").write_text(CONFIG % 1 + change)
        await asking.engine.load("m", {})
        assert (await asking.engine.statistics("m", ""))[0].success.count == 0


async def test_versions_that_stay_keep_their_counts(repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.scale(1), config="version_policy { all { } }")
    onnx_models.put(repository, "m", onnx_models.scale(2), version=2)
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        first, second = _versions(asking.engine).values()
        onnx_models.put(repository, "m", onnx_models.scale(3), version=3)
        (directory / "config.pbtxt").write_text("version_policy { specific { versions: [2, 3] } }")
        await asking.engine.load("m", {})
        now = _versions(asking.engine)
        assert list(now) == ["2", "3"]
        assert now["2"] is second
        await asking.until(lambda: not first.programs())
        assert client.array(await asking.ask("m", np.ones((1, 4)))).tolist() == [[3] * 4]


async def test_a_version_is_loaded_anew_where_the_highest_says_otherwise(repository: pathlib.Path) -> None:
    """What is completed comes from the highest version: the lower ones must share it."""
    onnx_models.put(repository, "m", onnx_models.scale(1, dims=(1, 4)), config="version_policy { all { } }")
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        assert (await asking.engine.model_config("m", "")).max_batch_size == 0
        onnx_models.put(repository, "m", onnx_models.scale(2), version=2)
        with pytest.raises(border.InferenceError, match=r"has shape \[-1, 4\], the model has \[1, 4\]"):
            await asking.engine.load("m", {})
        assert (await asking.engine.model_metadata("m", "")).versions == ("1",)
        onnx_models.put(repository, "m", onnx_models.scale(1), version=1)
        await asking.engine.load("m", {})
        assert (await asking.engine.model_metadata("m", "")).versions == ("1", "2")
        assert {each.max_batch_size for each in [v.config for v in _versions(asking.engine).values()]} == {4}


async def test_instances_change_by_an_override_until_the_next_load(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2), config=CONFIG % 1)
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        version = _versions(asking.engine)["1"]
        group = {"count": 3, "kind": "KIND_CPU"}
        await asking.engine.load("m", {"config": json.dumps({"max_batch_size": 1, "instance_group": [group]})})
        await _until_instances(asking, 3)
        await asking.engine.load("m", {})
        await _until_instances(asking, 1)
        assert _versions(asking.engine)["1"] is version


class TwoGpus(onnx_runtime.OnnxRuntime):
    """Runs on the CPU what is meant for two GPUs, each instance with a session of its own as there."""

    def gpus(self) -> int:
        return 2

    def uuid(self, device: port.Device) -> str:
        return f"GPU-{device.ordinal}" if device.kind == "GPU" else ""

    def capability(self, device: port.Device) -> str:
        return {0: "8.0", 1: "9.0"}[device.ordinal] if device.kind == "GPU" else ""

    def load(self, model: pathlib.Path, device: port.Device, options: port.SessionOptions) -> port.Program:
        program = super().load(model, port.Device(), options)
        program.shareable = device.kind == "CPU" or options.share  # type: ignore[misc]  # as a session on a GPU is
        return program


GPUS = "max_batch_size: 1 instance_group { kind: KIND_GPU count: %d gpus: [%s] }"


async def test_instances_on_gpus_change_one_by_one(repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", TwoGpus)
    directory = onnx_models.put(repository, "m", onnx_models.scale(2), config=GPUS % (1, "0"))
    none = _sessions()
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        version = _versions(asking.engine)["1"]
        kept = version.programs()[0][1]
        for count, gpus in ((3, "0"), (2, "0, 1"), (1, "1, 0"), (1, "1")):
            (directory / "config.pbtxt").write_text(GPUS % (count, gpus))
            await asking.engine.load("m", {})
            there = [device.ordinal for device, _ in version.programs()]
            assert there == [int(gpu) for gpu in gpus.split(", ") for _ in range(count)]
            (seen,) = await asking.engine.statistics("m", "")
            assert seen.gpu_uuid == (f"GPU-{gpus}" if len(gpus) == 1 else "")
            assert (kept in [program for _, program in version.programs()]) is ("0" in gpus)
            if "0" not in gpus:
                del kept
            await _until_instances(asking, len(there))
            await _until_sessions(asking, none + len(there))
        assert _versions(asking.engine)["1"] is version


async def _until_sessions(asking: client.Client, count: int) -> None:
    await asking.until(lambda: _sessions() == count)


async def test_gpus_get_the_file_of_their_capability_and_may_share_a_session(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", TwoGpus)
    config = GPUS % (2, "%d") + (
        'cc_model_filenames { key: "9.0" value: "nine.onnx" }'
        'parameters { key: "share_session_between_instances" value { string_value: "1" } }'
    )
    for gpu, factor in ((0, 2), (1, 9)):
        directory = onnx_models.put(repository, f"m{gpu}", onnx_models.scale(2), config=config % gpu)
        (directory / "1" / "nine.onnx").write_bytes(onnx_models.scale(9))
        before = _sessions()
        async with client.running(repository, control=client.EXPLICIT, load_at_start=(f"m{gpu}",)) as asking:
            assert client.array(await asking.ask(f"m{gpu}", np.ones((1, 4)))).tolist() == [[factor] * 4]
            assert (_instances(f"m{gpu}"), _sessions()) == (2, before + 1)


class Flaky(onnx_runtime.OnnxRuntime):
    """Fails so many loads, then loads as ever."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def load(self, model: pathlib.Path, device: port.Device, options: port.SessionOptions) -> port.Program:
        if self.failures:
            self.failures -= 1
            raise port.LoadFailed("not yet")
        return super().load(model, device, options)


class Held(onnx_runtime.OnnxRuntime):
    """Loads once it is let."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.let = threading.Event()

    def load(self, model: pathlib.Path, device: port.Device, options: port.SessionOptions) -> port.Program:
        self.asked.set()
        assert self.let.wait(client.WIDE_S)
        return super().load(model, device, options)


async def test_what_there_is_is_told_while_all_loads_are_held_up(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    held = Held()
    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", lambda: held)
    async with client.running(repository, control=client.EXPLICIT, load_thread_count=1) as asking:
        load = asyncio.ensure_future(asking.engine.load("m", {}))
        await asyncio.to_thread(held.asked.wait, client.WIDE_S)
        (entry,) = await asking.engine.index(ready=False)
        assert (entry.name, entry.state) == ("m", "LOADING")
        with pytest.raises(border.InferenceError, match="failed to poll from model repository"):
            await asking.engine.load("nope", {})
        held.let.set()
        await load


async def test_a_name_that_no_directory_could_have_is_refused(repository: pathlib.Path) -> None:
    async with client.running(repository, control=client.EXPLICIT) as asking:
        files: dict[str, border.Parameter | bytes] = {"config": "{}", "file:1/model.onnx": b""}
        for parameters in ({}, files):
            with pytest.raises(border.InferenceError, match="at most 255 characters, not 256"):
                await asking.engine.load("x" * 256, parameters)
        for name in ("..", ".", "../x", "a/b", "a\0b", ".hidden", ""):
            with pytest.raises(border.InferenceError, match="one that a model's directory can have") as caught:
                await asking.engine.load(name, files)
            assert caught.value.kind is border.ErrorKind.INVALID_ARGUMENT
        assert list(await asking.engine.index(ready=False)) == []


@pytest.mark.parametrize(
    ("failures", "retries", "state"), [(2, 2, "READY"), (3, 2, "UNAVAILABLE"), (1, 0, "UNAVAILABLE")]
)
async def test_a_load_is_tried_again(
    failures: int, retries: int, state: str, repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", lambda: Flaky(failures))
    async with client.running(repository, exit_on_error=False, load_retry_count=retries) as asking:
        assert [entry.state for entry in await asking.engine.index(ready=False)] == [state]
        assert await asking.engine.ready() is (state == "READY")


async def test_very_many_calls_for_one_model_are_told_to_come_later(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MOST_CALLS", 3)
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        calls = [asking.engine.load("m", {}) for _ in range(4)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        (refused,) = [result for result in results if result is not None]
        assert isinstance(refused, border.InferenceError)
        assert refused.kind is border.ErrorKind.UNAVAILABLE
        assert "related model 'm' to a load/unload request is currently loading or unloading" in refused.message
        await asking.engine.load("m", {})


async def test_the_one_gpu_of_a_model_is_a_label(repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", TwoGpus)
    onnx_models.put(repository, "m", onnx_models.scale(2), config=GPUS % (1, "1"))
    async with client.running(repository) as asking:
        text = await _text(metrics.Metrics(asking.engine, metrics.Switches(gpu=False, cpu=False)))
        assert 'nv_inference_count{model="m",version="1",gpu_uuid="GPU-1"} 0' in text


async def test_tags_are_labels_of_the_models_metrics(repository: pathlib.Path) -> None:
    tags = 'metric_tags { key: "team" value: "a \\"b\\"" }'
    onnx_models.put(repository, "m", onnx_models.scale(2), config=tags)
    onnx_models.put(repository, "n", onnx_models.scale(2))
    async with client.running(repository) as asking:
        shown = metrics.Metrics(asking.engine, metrics.Switches(gpu=False, cpu=False))
        text = await _text(shown)
        assert 'nv_inference_count{model="m",version="1",_team="a \\"b\\""} 0' in text
        assert 'nv_inference_request_failure{model="m",version="1",_team="a \\"b\\"",reason="OTHER"} 0' in text
        assert 'nv_inference_count{model="n",version="1"} 0' in text


BUCKETS = """
model_metrics { metric_control {
  metric_identifier { family: "nv_inference_first_response_histogram_ms" } histogram_options { buckets: [0.5, 60000] }
} }
"""


async def test_histograms_and_summaries_are_shown_where_they_are_asked_for(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2), config=BUCKETS)
    onnx_models.put(repository, "n", onnx_models.scale(2))
    observed = statistics.Observed((100.0,), (0.5,))
    async with client.running(repository, observed=observed) as asking:
        await asking.ask("m", np.ones((1, 4)))
        text = await _text(
            metrics.Metrics(asking.engine, metrics.Switches(gpu=False, cpu=False, counter_latencies=False))
        )
        families = {family.name: family for family in parser.text_string_to_metric_families(text)}
        histogram = families["nv_inference_first_response_histogram_ms"]
        assert histogram.type == "histogram"
        seen = {(each.labels["model"], each.labels.get("le")): each.value for each in histogram.samples}
        assert [seen["m", bound] for bound in ("60000", "+Inf")] == [1, 1]
        assert [seen["n", bound] for bound in ("100", "+Inf")] == [0, 0]
        for name in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
            summary = families[f"nv_inference_{name}_summary_us"]
            assert summary.type == "summary"
            counts = {each.labels["model"]: each.value for each in summary.samples if each.name.endswith("_count")}
            assert counts == {"m": 1, "n": 0}
        assert not [name for name in families if name.endswith("_duration_us")]
        assert "nv_inference_count" in families


async def test_without_being_asked_for_they_are_not_shown(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2), config=BUCKETS)
    async with client.running(repository) as asking:
        text = await _text(metrics.Metrics(asking.engine, metrics.Switches(gpu=False, cpu=False)))
        assert "summary" not in text
        assert "histogram_ms" not in text
        assert "nv_inference_queue_duration_us" in text


async def _text(shown: metrics.Metrics) -> str:
    try:
        return await shown.text()
    finally:
        shown.close()

"""A change of instances that cannot be had changes nothing; one that can is told as it is."""

from __future__ import annotations

import gc
import json
import pathlib
import threading
from collections import Counter

import numpy as np
import pytest

from gpu_worker import loader
from gpu_worker.engine import border
from gpu_worker.runtime import devices, onnx_runtime, port
from tests.support import engine_client as client
from tests.support import onnx_models

SESSION_BYTES = 100
GPUS = "max_batch_size: 1 instance_group { kind: KIND_GPU count: %d gpus: [%s] } version_policy { all { } }"


class Gpus(onnx_runtime.OnnxRuntime):
    """Runs on the CPU what is meant for three GPUs, each with room for so many sessions of its own."""

    def __init__(self) -> None:
        self.room = {0: 100, 1: 100, 2: 0}
        self.used: Counter[int] = Counter()

    def gpus(self) -> int:
        return len(self.room)

    def uuid(self, device: port.Device) -> str:
        return f"GPU-{device.ordinal}" if device.kind == "GPU" else ""

    def capability(self, device: port.Device) -> str:
        return "8.0" if device.kind == "GPU" else ""

    def load(self, model: pathlib.Path, device: port.Device, options: port.SessionOptions) -> port.Program:
        if not self.room[device.ordinal]:
            raise port.LoadFailed(f"GPU {device.ordinal} has no memory left")
        self.room[device.ordinal] -= 1
        self.used[device.ordinal] += SESSION_BYTES
        program = super().load(model, port.Device(), options)
        program.shareable = False  # type: ignore[misc]  # as a session on a GPU is
        return program


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    made = Gpus()
    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", lambda: made)
    monkeypatch.setattr(devices, "memory_in_use_bytes", lambda device: made.used[device.ordinal])
    return made


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Threads whose names begin so cannot be started."""
    names: set[str] = set()
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith(tuple(names)):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return names


def _sessions() -> int:
    gc.collect()
    return sum(type(each).__name__ == "InferenceSession" for each in gc.get_objects())


def _threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("m_"))


def _versions(asking: client.Client) -> list[loader.Version]:
    return list(asking.engine._models._models["m"].versions.values())


async def _said(asking: client.Client) -> object:
    """All that is told of what is in force."""
    return [
        (
            str(await asking.engine.model_config("m", each.spec.version)),
            [device for device, _ in each.programs()],
            (seen := each.statistics()).gpu_uuid,
            dict(seen.memory_bytes),
        )
        for each in _versions(asking)
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (GPUS % (1, "2"), "GPU 2 has no memory left"),
        (GPUS % (1, "0, 1, 2"), "GPU 2 has no memory left"),
        (GPUS % (3, "0"), "can't start new thread"),
        (GPUS % (1, "1"), "can't start new thread"),
    ],
)
async def test_a_change_that_cannot_be_had_changes_nothing(
    change: str, reason: str, repository: pathlib.Path, gpus: Gpus, refused: set[str]
) -> None:
    before = _sessions()
    directory = onnx_models.put(repository, "m", onnx_models.scale(1), config=GPUS % (1, "0"))
    onnx_models.put(repository, "m", onnx_models.scale(2), version=2)
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        versions, said, threads = _versions(asking), await _said(asking), _threads()
        # The first version has its threads by then.
        refused.add("m_2_")
        (directory / "config.pbtxt").write_text(change)

        with pytest.raises(border.InferenceError, match=reason) as caught:
            await asking.engine.load("m", {})

        assert caught.value.kind is border.ErrorKind.INVALID_ARGUMENT
        assert caught.value.message.startswith("load failed for model 'm': ")
        assert (_versions(asking), await _said(asking), _threads()) == (versions, said, threads)
        assert _sessions() == before + 2
        for version in ("1", "2"):
            answer = await asking.ask("m", np.ones((1, 4)), version=version)
            assert client.array(answer).tolist() == [[float(version)] * 4]
        refused.clear()
        gpus.room[2] = 100
        await asking.engine.load("m", {})
        assert await _said(asking) != said
        assert _versions(asking) == versions


async def test_the_memory_of_instances_comes_and_goes_with_them(repository: pathlib.Path, gpus: Gpus) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.scale(1), config=GPUS % (1, "0"))
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        for count, where in ((3, "0"), (2, "0, 1"), (1, "1"), (2, "1, 0")):
            (directory / "config.pbtxt").write_text(GPUS % (count, where))
            await asking.engine.load("m", {})
            (seen,) = await asking.engine.statistics("m", "")
            assert seen.memory_bytes == {("GPU", int(gpu)): count * SESSION_BYTES for gpu in where.split(", ")}


async def test_an_override_that_cannot_be_had_leaves_the_repositorys_configuration(
    repository: pathlib.Path, gpus: Gpus
) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(1), config=GPUS % (1, "0"))
    async with client.running(repository, control=client.EXPLICIT, load_at_start=("m",)) as asking:
        said = await _said(asking)
        wanted = {"max_batch_size": 1, "instance_group": [{"kind": "KIND_GPU", "gpus": [0, 2]}]}
        with pytest.raises(border.InferenceError, match="GPU 2 has no memory left"):
            await asking.engine.load("m", {"config": json.dumps(wanted)})
        assert await _said(asking) == said

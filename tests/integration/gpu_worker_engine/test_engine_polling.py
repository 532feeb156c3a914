"""Models follow what lies in the repositories, without a clock: the test lets each look happen."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import AsyncIterator
from typing import NoReturn

import numpy as np
import pytest

from gpu_worker import core
from gpu_worker.engine import border
from gpu_worker.repository import layout
from tests.support import engine_client as client
from tests.support import ensembles, onnx_models

CONFIG = """
max_batch_size: 4
output { name: "OUTPUT" data_type: TYPE_FP32 dims: 4 label_filename: "labels" }
"""


class Polled:
    """An engine that polls when told to; `waits` are the seconds that it wanted to wait."""

    def __init__(self, *repositories: pathlib.Path, every_s: float = 15.0) -> None:
        self.waits: list[float] = []
        self._due = asyncio.Event()
        self._waiting = asyncio.Event()
        options = core.Options(
            repositories=repositories, control=core.ControlMode.POLL, exit_on_error=False, poll_s=every_s
        )
        self.engine = core.Core.create(options, self._wait)
        self.asking = client.Client(self.engine)

    async def look(self) -> None:
        """Lets one look happen, and all that follows from it."""
        async with asyncio.timeout(client.WIDE_S):
            await self._waiting.wait()
            self._waiting.clear()
            self._due.set()
            await self._waiting.wait()

    async def settle(self) -> None:
        """Two looks: the second acts."""
        await self.look()
        await self.look()

    async def factor(self, version: str = "") -> float:
        answer = await self.asking.ask("m", np.ones((1, 4)), version=version)
        return float(client.array(answer)[0, 0])

    async def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._waiting.set()
        await self._due.wait()
        self._due.clear()


@contextlib.asynccontextmanager
async def polled(*repositories: pathlib.Path) -> AsyncIterator[Polled]:
    found = Polled(*repositories)
    try:
        await found.engine.start()
        yield found
    finally:
        await found.engine.close()


async def test_models_come_change_and_go(repository: pathlib.Path) -> None:
    async with polled(repository) as polling:
        engine = polling.engine
        onnx_models.put(repository, "m", onnx_models.scale(2))
        await polling.look()
        assert not await engine.model_ready("m", ""), "it may be half there"
        await polling.look()
        assert await polling.factor() == 2
        onnx_models.put(repository, "m", onnx_models.scale(3), version=2)
        await polling.settle()
        assert await polling.factor() == 3
        assert not await engine.model_ready("m", "1")
        onnx_models.put(repository, "m", onnx_models.scale(3), config="version_policy { all { } }")
        await polling.settle()
        assert (await engine.model_metadata("m", "")).versions == ("1", "2")
        shutil.rmtree(repository / "m")
        await polling.look()
        assert await engine.model_ready("m", "")
        await polling.look()
        assert not await engine.model_ready("m", "")
        assert await engine.ready(), "what is gone is not wanted"
        await polling.look()
        assert polling.waits == [15.0, 1.0, 15.0, 1.0, 15.0, 1.0, 15.0, 1.0, 15.0, 15.0]


async def test_what_serves_is_not_touched_by_a_version_beside_it(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2), config="version_policy { all { } }")
    async with polled(repository) as polling:
        assert await polling.factor() == 2
        onnx_models.put(repository, "m", onnx_models.scale(3), version=2)
        await polling.settle()
        counts = {each.version: each.success.count for each in await polling.engine.statistics("m", "")}
        assert counts == {"1": 1, "2": 0}


async def test_labels_are_read_anew(repository: pathlib.Path) -> None:
    labels = onnx_models.put(repository, "m", onnx_models.identity(), config=CONFIG) / "labels"
    labels.write_text("a\nb\nc\nd")
    async with polled(repository) as polling:
        for names in ("abcd", "efgh"):
            labels.write_text("\n".join(names))
            await polling.settle()
            wanted = [border.RequestedOutput("OUTPUT", classification=1)]
            answer = await polling.asking.ask("m", [[0, 0, 9, 0]], outputs=wanted)
            assert client.array(answer).tolist() == [[f"9.000000:2:{names[2]}"]]


async def test_a_failed_reload_keeps_the_old_until_it_is_mended(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with polled(repository) as polling:
        onnx_models.put(repository, "m", b"half a model")
        await polling.settle()
        assert await polling.factor() == 2
        assert await polling.engine.ready()
        onnx_models.put(repository, "m", onnx_models.scale(3))
        await polling.settle()
        assert await polling.factor() == 3


async def test_a_new_model_that_fails_makes_the_server_unready(repository: pathlib.Path) -> None:
    async with polled(repository) as polling:
        assert await polling.engine.ready()
        onnx_models.put(repository, "m", b"no model")
        await polling.settle()
        assert not await polling.engine.ready()
        (entry,) = await polling.engine.index(ready=False)
        assert entry.state == "UNAVAILABLE"
        shutil.rmtree(repository / "m")
        await polling.settle()
        assert await polling.engine.ready()


async def test_a_name_that_becomes_double_stays_as_it_is(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with polled(repository, second) as polling:
        onnx_models.put(second, "m", onnx_models.scale(3))
        await polling.settle()
        assert await polling.factor() == 2
        shutil.rmtree(repository / "m")
        await polling.settle()
        assert await polling.factor() == 3, "it has moved"


async def test_a_repository_that_cannot_be_read_changes_nothing(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with polled(repository) as polling:
        away = shutil.move(repository, repository.with_name("away"))
        await polling.settle()
        await polling.settle()
        assert await polling.factor() == 2
        shutil.move(away, repository)
        await polling.settle()
        assert await polling.factor() == 2


async def test_a_model_that_cannot_be_read_is_told(repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with polled(repository) as polling:
        onnx_models.put(repository, "n", onnx_models.scale(2))
        # Root may read everything, so a directory that cannot be read is made of one that goes in the moment of looking.
        monkeypatch.setattr(layout, "_walk", _forbidden)
        await polling.settle()
        found = {entry.name: (entry.state, entry.reason) for entry in await polling.engine.index(ready=False)}
        assert found["m"][0] == "READY"
        assert found["n"] == ("UNAVAILABLE", "the model's directory cannot be read: [Errno 13] Permission denied")
        monkeypatch.undo()
        await polling.settle()
        assert await polling.engine.model_ready("n", "")


def _forbidden(*_: object) -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


async def test_nobody_loads_by_hand_while_polling(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    async with polled(repository) as polling:
        for call in (polling.engine.load("m", {}), polling.engine.unload("m", unload_dependents=False)):
            with pytest.raises(border.InferenceError) as refused:
                await call
            assert refused.value.kind is border.ErrorKind.UNAVAILABLE
            assert refused.value.message == "explicit model load / unload is not allowed if polling is enabled"


async def test_the_index_reads_each_repository_once(
    repository: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every probe of a sidecar asks for it, and a repository may hold very many models on a slow volume."""
    second = tmp_path / "second"
    for root, name in ((repository, "a"), (repository, "b"), (second, "b")):
        onnx_models.put(root, name, onnx_models.identity())
    engine = core.Core.create(core.Options(repositories=(repository, second), control=client.EXPLICIT))
    try:
        await engine.start()
        read: list[str] = []
        scandir = os.scandir

        def noting(path: str) -> object:
            read.append(str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", noting)
        assert [(each.name, each.state) for each in await engine.index(ready=False)] == [
            ("a", ""),
            ("b", "UNAVAILABLE"),
        ]
        assert read == [str(repository), str(second)]
    finally:
        await engine.close()


async def test_a_link_in_a_circle_hides_no_other_model(repository: pathlib.Path) -> None:
    directory = onnx_models.put(repository, "m", onnx_models.identity())
    for place in (repository / "circle", directory / "circle", directory / "1" / "circle"):
        place.symlink_to(place.name)
    async with client.running(repository, control=client.EXPLICIT) as asking:
        assert [each.name for each in await asking.engine.index(ready=False)] == ["m"]
        await asking.engine.load("m", {})
        with pytest.raises(border.InferenceError, match="failed to load 'circle', failed to poll"):
            await asking.engine.load("circle", {})


@pytest.mark.parametrize("place", ["config.pbtxt", "1/model.onnx", "labels.txt", "warmup/data", "1/link"])
async def test_a_pipe_among_a_models_files_is_refused_and_holds_up_nobody(
    place: str, repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Whoever opens one waits for a writer, which may never come."""
    odd, pipe = onnx_models.put(repository, "odd", onnx_models.identity()), tmp_path / "pipe"
    onnx_models.put(repository, "good", onnx_models.identity())
    os.mkfifo(pipe)
    (odd / place).parent.mkdir(exist_ok=True)
    (odd / place).unlink(missing_ok=True)
    (odd / place).symlink_to(pipe)
    async with client.running(repository, control=client.EXPLICIT, load_thread_count=1) as asking:
        with pytest.raises(border.InferenceError, match=f"'{place}' is neither a file nor a directory") as caught:
            await asking.engine.load("odd", {})
        assert caught.value.kind is border.ErrorKind.INVALID_ARGUMENT
        await asking.engine.load("good", {})


async def test_an_ensemble_comes_and_goes_with_what_it_is_composed_of(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2))
    ensembles.put(repository, "e", ensembles.chain("m", batch=4))
    async with polled(repository) as worker:
        assert await worker.engine.model_ready("e", "")
        away = shutil.move(repository / "m", repository.parent / "m")
        await worker.settle()
        assert not await worker.engine.model_ready("e", "")
        shutil.move(away, repository / "m")
        await worker.settle()
        assert await worker.engine.model_ready("e", "")
        shutil.rmtree(repository / "e")
        await worker.settle()
        assert not await worker.engine.model_ready("e", "")
        assert await worker.engine.model_ready("m", "")

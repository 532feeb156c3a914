"""The processes of models in Python: they end with their model, come back when they crash, and never hold others up."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import signal
import subprocess
import threading

import numpy as np
import pytest

from gpu_worker.engine import border
from tests.support import engine_client as client
from tests.support import python_models as models
from tests.support import worker_process

pytestmark = pytest.mark.slow  # each model is a process that imports numpy

OBEY = """
def execute(self, requests):
    found = []
    for each in requests:
        order = array(each)[0, 0]
        if order == 1:
            os._exit(3)
        if order == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if order == 3:
            threading.Event().wait()
        found.append(response(np.array([[os.getpid()]], np.float32)))
    return found
"""


def processes(name: str, parent: int) -> list[int]:
    """The processes of that name which that process has started."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        comm, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
        if comm == name[-15:] and int(rest[1]) == parent and rest[0] != "Z":
            found.append(int(stat.parent.name))
    return found


async def ready(asking: client.Client, name: str) -> bool:
    return await asking.engine.model_ready(name, "")


@pytest.mark.parametrize(("order", "words"), [(1, "exit status 3"), (2, "signal SIGSEGV")])
async def test_a_crash_fails_what_was_in_flight_and_is_mended(repository: pathlib.Path, order: int, words: str) -> None:
    models.put(repository, "obey", OBEY)
    models.put(repository, "other")
    async with client.running(repository) as asking:
        first = float(client.array(await asking.ask("obey", [[0]]))[0, 0])
        prepared = [asking.prepare("obey", [[order]]), asking.prepare("obey", [[0]])]
        failed, waited = await asking.ask_all(prepared)
        refused = client.refusal(failed)
        assert refused.kind is border.ErrorKind.INTERNAL
        assert refused.message.startswith("Failed to process the request(s) for model 'obey_0_0', message: Stub")
        assert words in refused.message
        # Nobody is left who could run what waited.
        assert client.refusal(waited).kind is border.ErrorKind.UNAVAILABLE
        assert client.array(await asking.ask("other", [[5]])).tolist() == [[5]]
        await asking.until(lambda: ready(asking, "obey"))
        assert float(client.array(await asking.ask("obey", [[0]]))[0, 0]) != first


async def test_a_model_without_a_process_is_not_ready(repository: pathlib.Path) -> None:
    once = """
    def initialize(self, args):
        marker = os.path.join(args["model_repository"], "began")
        if os.path.exists(marker):
            raise RuntimeError("only once")
        open(marker, "w").close()
    """
    models.put(repository, "once", once + models.ECHO.replace("\n", "\n    "))
    async with client.running(repository) as asking:
        assert await ready(asking, "once")
        (pid,) = processes("once_0_0", os.getpid())
        os.kill(pid, signal.SIGKILL)
        await asking.until(lambda: _is_down(asking, "once"))
        (entry,) = await asking.engine.index(ready=False)
        assert (entry.state, "restarted" in entry.reason) == ("UNAVAILABLE", True)
        assert not await asking.engine.index(ready=True)
        refused = client.refusal(await asking.ask("once", [[1]]))
        assert (refused.kind, "is not ready" in refused.message) == (border.ErrorKind.UNAVAILABLE, True)
        (repository / "once" / "began").unlink()
        await asking.until(lambda: ready(asking, "once"))
        assert client.array(await asking.ask("once", [[1]])).tolist() == [[1]]


async def _is_down(asking: client.Client, name: str) -> bool:
    return not await ready(asking, name)


async def test_other_instances_go_on(repository: pathlib.Path) -> None:
    models.put(repository, "obey", OBEY, models.config(more=models.instances(3)))
    async with client.running(repository) as asking:
        prepared = [asking.prepare("obey", [[int(index == 4)]]) for index in range(40)]
        answers = await asking.ask_all(prepared)
        assert [index for index, each in enumerate(answers) if isinstance(each, border.InferenceError)] == [4]
        assert await ready(asking, "obey")


async def test_execute_that_does_not_return_is_ended(repository: pathlib.Path) -> None:
    models.put(repository, "obey", OBEY, models.config(more=models.parameter("execute_timeout_s", "1")))
    async with client.running(repository) as asking:
        refused = client.refusal(await asking.ask("obey", [[3]]))
        assert "execute did not return within 1 seconds (execute_timeout_s)" in refused.message
        await asking.until(lambda: ready(asking, "obey"))
        assert isinstance(await asking.ask("obey", [[0]]), border.InferResponse)


async def test_an_unload_ends_processes_after_the_work(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        while not os.path.exists(os.path.join(pb_utils.get_model_dir(), "go")):
            threading.Event().wait(0.01)
        return [response(array(each)) for each in requests]

    def finalize(self):
        open(os.path.join(pb_utils.get_model_dir(), "finalized"), "w").close()
    """
    directory = models.put(repository, "slow", code, models.config(more=models.instances(2)))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        await asking.engine.load("slow", {})
        assert len(processes("slow_0_0", os.getpid()) + processes("slow_0_1", os.getpid())) == 2
        request, answered = asking.prepare("slow", [[7]])
        asking.engine.submit([request])
        await asking.engine.unload("slow", unload_dependents=False)
        (directory / "1" / "go").touch()
        async with asyncio.timeout(client.WIDE_S):
            assert client.array(await answered).tolist() == [[7]]
        await asking.until(lambda: not processes("slow_0_0", os.getpid()) + processes("slow_0_1", os.getpid()))
        assert (directory / "1" / "finalized").exists()


async def test_loads_and_crashes_leave_nothing_behind(repository: pathlib.Path) -> None:
    models.put(repository, "obey", OBEY)

    def held() -> int:
        gc.collect()
        return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())

    def mapped() -> str:
        return pathlib.Path("/proc/self/maps").read_text()

    async with client.running(repository, control=client.EXPLICIT) as asking:
        counts = []
        for _ in range(3):
            await asking.engine.load("obey", {})
            assert isinstance(await asking.ask("obey", np.zeros((1, 100_000))), border.InferResponse)
            client.refusal(await asking.ask("obey", [[1]]))
            await asking.until(lambda: ready(asking, "obey"))
            await asking.engine.unload("obey", unload_dependents=False)
            await asking.until(lambda: _unloaded(asking))
            counts.append(held())
        assert counts[1] == counts[2]
        assert "memfd:tms-obey" not in mapped()


async def _unloaded(asking: client.Client) -> bool:
    (entry,) = await asking.engine.index(ready=False)
    return (entry.state, entry.reason) == ("UNAVAILABLE", "unloaded")


def test_nothing_outlives_a_killed_worker(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code = """
    def initialize(self, args):
        print("here I am"); pb_utils.Logger.log_warn("look out")
    """
    models.put(repository, "obey", code + OBEY.replace("\n", "\n    "))
    with worker_process.running(repository, tmp_path / "worker") as worker:
        (pid,) = processes("obey_0_0", worker.process.pid)
        # The test has it as its own once the worker is gone: a descriptor tells of its end.
        descriptor = os.pidfd_open(pid)
        try:
            worker.process.kill()
            worker.wait()
            _await_end(descriptor)
        finally:
            os.close(descriptor)
        assert "here I am" in worker.log()
        assert "look out" in worker.log()


def test_a_worker_that_is_told_to_end_ends_its_models(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    models.put(repository, "obey", OBEY)
    with worker_process.running(repository, tmp_path / "worker") as worker:
        (pid,) = processes("obey_0_0", worker.process.pid)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert not pathlib.Path(f"/proc/{pid}").exists()


def _await_end(descriptor: int) -> None:
    """A process's descriptor can be read once it has ended."""
    command = ["/usr/bin/env", "python3", "-c", "import select, sys; sys.exit(not select.select([0], [], [], 60)[0])"]
    assert subprocess.run(command, stdin=descriptor).returncode == 0


@pytest.mark.parametrize("cause", ["no third", "can't start new thread"])
async def test_instances_that_cannot_be_had_change_nothing_and_leave_no_process(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    code = """
    def initialize(self, args):
        if args["model_instance_name"].endswith("_2") and os.path.exists(os.path.join(args["model_repository"], "no")):
            raise RuntimeError("no third")
    """
    directory = models.put(repository, "few", code + models.ECHO.replace("\n", "\n    "))
    (directory / "config.pbtxt").write_text(models.config(more=models.instances(1)))
    start = threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if thread.name == "few_1_2":
            raise RuntimeError("can't start new thread")
        start(thread)

    async with client.running(repository, control=client.EXPLICIT, load_at_start=("few",)) as asking:
        with monkeypatch.context() as patched:
            if cause == "no third":
                (directory / "no").touch()
            else:
                patched.setattr(threading.Thread, "start", refusing)
            (directory / "config.pbtxt").write_text(models.config(more=models.instances(3)))
            with pytest.raises(border.InferenceError, match=cause):
                await asking.engine.load("few", {})
        assert (await asking.engine.model_config("few", "")).instance_group[0].count == 1
        await asking.until(lambda: _running("few") == 1)
        assert client.array(await asking.ask("few", [[7]])).tolist() == [[7]]
        (directory / "no").unlink(missing_ok=True)
        await asking.engine.load("few", {})
        assert _running("few") == 3


def _running(model: str) -> int:
    return sum(len(processes(f"{model}_0_{index}", os.getpid())) for index in range(3))

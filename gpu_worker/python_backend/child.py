"""The process of one instance: loads the model's code, runs its batches one after the other, and ends with its worker.

Decides how what a model raises is told. Must never outlive the worker, write into the model's directory, or let what
one batch does fail another.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import inspect
import os
import pathlib
import signal
import sys
import threading
import types
from collections.abc import Mapping
from typing import Any

from gpu_worker.ipc import link, memory
from gpu_worker.python_backend import context, requests, utils, wire
from gpu_worker.python_backend import line as lines
from gpu_worker.python_backend.model_config import ModelConfig

_SET_DEATH_SIGNAL, _SET_NAME = 1, 15
_MODULES = ("triton_python_backend_utils", "c_python_backend_utils")


class _Wrong(Exception):
    """What the model's code gave back makes no sense."""


def main() -> None:
    """Arguments: the descriptors of the socket, of two areas and two bells, the worker's process and a name."""
    control, taken, taken_bell, given, given_bell, worker = map(int, sys.argv[1:7])
    _settle(worker, sys.argv[7])
    line = lines.Line(
        link.Sender(memory.Area(given), given_bell),
        link.Receiver(memory.Area(taken), taken_bell, writeable=True),
        control,
    )
    for descriptor in (taken, given):
        os.close(descriptor)
    for name in _MODULES:
        sys.modules[name] = utils
    _Host(line).run()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    # Threads that the model has left behind are not waited for.
    os._exit(0)


class _Host:
    """Runs the model."""

    def __init__(self, line: lines.Line) -> None:
        self._line = line
        self._model: Any = None

    def run(self) -> None:
        if not self._set_up(wire.unpack(self._line.next().head)):
            return
        while (message := self._line.next()).kind != wire.Kind.STOP:
            self._execute(message)
            # The tensors' memory is the worker's again; do not hold it while waiting.
            del message
        finalize = getattr(self._model, "finalize", None)
        if finalize is not None:
            finalize()

    def _set_up(self, told: Mapping[str, Any]) -> bool:
        context.enter(self._line, context.About(**told["about"]))
        try:
            kind = _loaded(told["path"], told["arguments"]["model_repository"])
            found = self._completed(kind, told["complete"]) if told["complete"] else self._begun(kind, told)
        except BaseException as error:  # noqa: BLE001 - whatever the code does, the worker hears of it
            found = {"error": _words(error)}
        self._line.send(link.Message(wire.Kind.READY, 0, wire.pack(found)))
        return "error" not in found and not told["complete"]

    def _completed(self, kind: type[Any], config: str) -> dict[str, Any]:
        complete = getattr(kind, "auto_complete_config", None)
        if complete is None:
            return {"config": None}
        found = complete(ModelConfig(config))
        if not isinstance(found, ModelConfig):
            raise _Wrong("auto_complete_config function must return a valid ModelConfig object")
        return {"config": found.as_dict()}

    def _begun(self, kind: type[Any], told: Mapping[str, Any]) -> dict[str, Any]:
        if not callable(getattr(kind, "execute", None)):
            raise _Wrong("TritonPythonModel must have a function 'execute'")
        self._model = kind()
        if hasattr(self._model, "initialize"):
            self._model.initialize(told["arguments"])
        return {}

    def _execute(self, message: link.Message) -> None:
        heads = wire.unpack(message.head)
        self._line.began([each["number"] for each in heads])
        try:
            given = _requests(heads, message)
            returned = self._model.execute(given)
            if inspect.iscoroutine(returned):
                returned = _awaited(returned)
            answers, buffers = self._answers(given, returned)
            head = wire.pack({"answers": answers})
        except BaseException as error:  # noqa: BLE001 - a batch that fails is answered and the next one runs
            head, buffers = wire.pack({"error": _words(error)}), []
            answers = [None if context.about().decoupled else {} for _ in heads]
        answered = zip(heads, answers, strict=True)
        self._line.finished([head["number"] for head, answer in answered if answer is not None])
        self._send(link.Message(wire.Kind.EXECUTED, message.number, head, buffers))

    def _send(self, message: link.Message) -> None:
        try:
            self._line.send(message)
        except ValueError as error:
            told = wire.pack({"error": f"the responses cannot be sent: {error}"})
            self._line.send(link.Message(wire.Kind.EXECUTED, message.number, told))

    def _answers(
        self, given: list[requests.InferenceRequest], returned: Any
    ) -> tuple[list[dict[str, Any] | None], list[wire.Buffer]]:
        """A head for each request, None where a sender answers it, and the buffers of all."""
        if context.about().decoupled:
            if returned is not None:
                raise _Wrong(
                    f"Python model '{context.about().instance}' is using the decoupled mode and the execute function "
                    "must return None."
                )
            return [None] * len(given), []
        answers: list[dict[str, Any] | None] = []
        buffers: list[wire.Buffer] = []
        for request, response in zip(given, _checked(returned, len(given)), strict=True):
            if response is None:
                answers.append(None)
                continue
            head, mine = response._packed(request._outputs)
            answers.append(head)
            buffers += mine
        return answers, buffers


def _requests(heads: list[dict[str, Any]], message: link.Message) -> list[requests.InferenceRequest]:
    found = []
    at = 0
    for head in heads:
        end = at + len(head["inputs"])
        inputs = requests.tensors(head["inputs"], message.buffers[at:end])
        found.append(requests.InferenceRequest._received(head, inputs))
        at = end
    return found


def _checked(returned: Any, count: int) -> list[requests.InferenceResponse | None]:
    if not isinstance(returned, list):
        raise _Wrong(f"Expected a list in the execution response, got '{type(returned).__name__}'")
    if len(returned) != count:
        raise _Wrong(
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            f"InferenceRequest(s) size is:{count}, and InferenceResponse(s) size is:{len(returned)}"
        )
    for each in returned:
        if each is not None and not isinstance(each, requests.InferenceResponse):
            raise _Wrong(
                "Expected an 'InferenceResponse' object in the execute function return list, found type "
                f"'{type(each)}'."
            )
    return returned


def _awaited(coroutine: Any) -> Any:
    import asyncio  # noqa: PLC0415 - few models need it

    return asyncio.run(coroutine)


def _loaded(path: str, directory: str) -> type[Any]:
    """The class in the model's file, whose directory and the model's own are searched for what it imports."""
    file = pathlib.Path(path)
    sys.path += [str(file.parent), directory]
    specification = importlib.util.spec_from_file_location("model", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["model"] = module
    specification.loader.exec_module(module)
    kind: type[Any] | None = getattr(module, "TritonPythonModel", None)
    if kind is None:
        raise _Wrong(f"{file.name} has no class 'TritonPythonModel'")
    return kind


def _words(error: BaseException) -> str:
    """The error as Triton tells it: its kind, what it says, and where it came from, innermost first."""
    if isinstance(error, _Wrong):
        return str(error)
    words = f"{type(error).__name__}: {error}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    frame: types.FrameType | None = trace.tb_frame if trace is not None else None
    places = []
    line = trace.tb_lineno if trace is not None else 0
    while frame is not None and not frame.f_code.co_filename.endswith(
        ("python_backend/child.py", "importlib._bootstrap>")
    ):
        places.append(f"  {frame.f_code.co_filename}({line}): {frame.f_code.co_name}\n")
        frame = frame.f_back
        line = frame.f_lineno if frame is not None else 0
    return (words + ("\n\nAt:\n" + "".join(places) if places else "")).rstrip()


def _settle(worker: int, name: str) -> None:
    """Ends with the worker, whatever the model's code is at; is known by the instance's name."""
    library = ctypes.CDLL(None)
    library.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != worker:
        os._exit(1)
    library.prctl(_SET_NAME, name.encode()[-15:], 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.dont_write_bytecode = True
    threading.current_thread().name = name


if __name__ == "__main__":
    main()

"""An engine over a repository of real models, and a client that asks it."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from gpu_worker import core
from gpu_worker.engine import border, tensors

Answer = border.InferResponse | border.InferenceError
EXPLICIT = core.ControlMode.EXPLICIT
WIDE_S = 60.0


class Client:
    """Asks an engine as a front does."""

    def __init__(self, engine: core.Core) -> None:
        self.engine = engine

    def prepare(
        self, model: str, *arrays: Any, datatype: str = "FP32", **fields: Any
    ) -> tuple[border.InferRequest, asyncio.Future[Answer]]:
        """A request whose inputs are INPUT, or INPUT0, INPUT1, ... for several arrays, and its coming answer."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(answer: Answer, *, final: bool = True) -> None:
            assert final
            answered.set_result(answer)

        names = ["INPUT"] if len(arrays) == 1 else [f"INPUT{index}" for index in range(len(arrays))]
        dtype = tensors.DATATYPES[datatype].dtype
        inputs = []
        for name, array in zip(names, arrays, strict=True):
            typed = np.asarray(array, dtype)
            inputs.append(border.Tensor(name, datatype, typed.shape, bytes(tensors.to_wire(typed))))
        request = border.InferRequest(
            model=model,
            version=fields.pop("version", ""),
            id=fields.pop("id", "r"),
            inputs=inputs,
            outputs=fields.pop("outputs", []),
            parameters=fields.pop("parameters", {}),
            reply=reply,
            **fields,
        )
        return request, answered

    async def ask_all(self, prepared: Sequence[tuple[border.InferRequest, asyncio.Future[Answer]]]) -> list[Answer]:
        """Hands all over at once."""
        self.engine.submit([request for request, _ in prepared])
        async with asyncio.timeout(WIDE_S):
            return list(await asyncio.gather(*(answered for _, answered in prepared)))

    async def ask(self, model: str, *arrays: Any, **fields: Any) -> Answer:
        return (await self.ask_all([self.prepare(model, *arrays, **fields)]))[0]

    async def until(self, holds: Callable[[], bool | Awaitable[bool]]) -> None:
        """Lets the loop turn until the world is as wanted."""
        turned = asyncio.Event()
        async with asyncio.timeout(WIDE_S):
            while not (await found if isinstance(found := holds(), Awaitable) else found):
                asyncio.get_running_loop().call_later(0.005, turned.set)
                await turned.wait()
                turned.clear()


def array(answer: Answer, output: str = "OUTPUT") -> Any:
    """The values of an output."""
    assert isinstance(answer, border.InferResponse), answer
    (found,) = [tensor for tensor in answer.outputs if tensor.name == output]
    if found.datatype == "BYTES":
        return tensors.decode_bytes(found.data, found.shape, found.name)
    return tensors.view(found.data, tensors.DATATYPES[found.datatype], found.shape)


def refusal(answer: Answer) -> border.InferenceError:
    assert isinstance(answer, border.InferenceError), answer
    return answer


@contextlib.asynccontextmanager
async def running(repository: pathlib.Path, **options: Any) -> AsyncIterator[Client]:
    """A client of a started engine over that repository, which is closed at the end."""
    engine = core.Core.create(core.Options(repositories=(repository,), **options))
    try:
        await engine.start()
        yield Client(engine)
    finally:
        await engine.close()

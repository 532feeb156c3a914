"""An engine whose answers a test gives by hand, through the border as any engine does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gpu_worker.engine import border

WIDE_S = 60.0


class Scripted:
    """The part of border.Engine that inference needs. Has one decoupled model, `many`: PROMPT (BYTES [1]) and an optional SEED (INT32 [1]) give TEXT (BYTES)."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[border.InferRequest] = asyncio.Queue()

    async def next(self) -> border.InferRequest:
        """The next request that a front submits."""
        async with asyncio.timeout(WIDE_S):
            return await self.asked.get()

    def submit(self, requests: Sequence[border.InferRequest]) -> None:
        for request in requests:
            self.asked.put_nowait(request)

    def leaving(self, model: str) -> bool:
        return False

    async def model_metadata(self, name: str, version: str) -> border.ModelMetadata:
        if name != "many":
            raise border.InferenceError(border.ErrorKind.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        inputs = (border.TensorMetadata("PROMPT", "BYTES", (1,)), border.TensorMetadata("SEED", "INT32", (1,)))
        return border.ModelMetadata(name, ("1",), "python", inputs, (border.TensorMetadata("TEXT", "BYTES", (-1,)),))


def text(*parts: str, identifier: str = "", **parameters: border.Parameter) -> border.InferResponse:
    """A response with these elements of TEXT."""
    wire = b"".join(len(part.encode()).to_bytes(4, "little") + part.encode() for part in parts)
    tensor = border.Tensor("TEXT", "BYTES", (len(parts),), wire)
    return border.InferResponse("many", "1", identifier, [tensor] if parts else [], parameters)

"""So many requests in flight through the unmodified tritonclient; a process of its own that prints one JSON line.

Two copies of the protocol's messages cannot be in one process, so this imports nothing of the project.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
import time
from typing import Any

import numpy as np


async def main(protocol: str, address: str, columns: int, in_flight: int, seconds: float) -> None:
    """Runs so long and prints requests per second and latencies in milliseconds."""
    module: Any = importlib.import_module(f"tritonclient.{protocol}.aio")
    data = np.arange(columns, dtype=np.float32).reshape(1, -1)
    latencies_s: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        options = {"conn_limit": in_flight} if protocol == "http" else {}
        client = await stack.enter_async_context(module.InferenceServerClient(address, **options))
        end_s = time.perf_counter() + seconds
        begun_s = time.perf_counter()
        await asyncio.gather(*(_loop(module, client, data, end_s, latencies_s) for _ in range(in_flight)))
        spent_s = time.perf_counter() - begun_s
    latencies_s.sort()
    count = len(latencies_s)
    middle, late = latencies_s[count // 2] * 1e3, latencies_s[count * 99 // 100] * 1e3
    print(json.dumps({"per_s": count / spent_s, "p50_ms": middle, "p99_ms": late}))


async def _loop(module: Any, client: Any, data: Any, end_s: float, latencies_s: list[float]) -> None:
    while (begun_s := time.perf_counter()) < end_s:
        tensor = module.InferInput("INPUT", data.shape, "FP32")
        tensor.set_data_from_numpy(data)
        answer = await client.infer("identity", [tensor])
        if not np.array_equal(answer.as_numpy("OUTPUT"), data):
            raise SystemExit("the answer is not what was sent")
        latencies_s.append(time.perf_counter() - begun_s)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))

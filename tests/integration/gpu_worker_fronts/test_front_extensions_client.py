"""The protocol's extensions through an unmodified tritonclient in a process of its own."""

from __future__ import annotations

import asyncio
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

CALLS = pathlib.Path(__file__).with_name("triton_extensions.py")


async def seen_by_client(worker: Any, part: str) -> dict[str, Any]:
    command = [sys.executable, str(CALLS), part, str(worker.ports["http"]), str(worker.ports["grpc"])]
    called = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=100)
    assert called.returncode == 0, called.stderr + worker.log()
    seen: dict[str, Any] = json.loads(called.stdout)
    return seen


@pytest.mark.slow  # a whole worker and a whole client start
async def test_shared_memory(launch: Any) -> None:
    seen = await seen_by_client(await launch(), "shared_memory")
    for part, invalid, missing, exists in (
        (seen["http"], "400", "404", "400"),
        (seen["grpc"], "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "StatusCode.ALREADY_EXISTS"),
    ):
        assert part["output"] == [[1, 2, 3, 4]]
        assert part["told"] == ["taken", 16, 16]
        assert part["registered"] == ["given", "taken"]
        assert part["twice"] == [exists, "shared memory region 'given' already in manager"]
        assert part["too_large"][0] == invalid
        assert "beyond the 16 bytes" in part["too_large"][1]
        assert part["cuda"][0]
        assert part["small"][0] == invalid
        assert "(8 bytes) should be at least 16 bytes" in part["small"][1]
        assert part["left"] == ["taken"]
        assert part["unknown"][0] == missing
        assert "Unable to find shared memory region: 'given'" in part["unknown"][1]
        assert part["none"] == []

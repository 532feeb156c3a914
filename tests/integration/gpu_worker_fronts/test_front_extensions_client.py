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


@pytest.mark.slow  # a whole worker and a whole client start
async def test_logging(launch: Any, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "worker.log"
    worker = await launch(f"--log-file={file}")
    seen = await seen_by_client(worker, "logging")
    default = {
        "log_file": str(file),
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    for part, invalid, unsupported in (
        (seen["http"], "400", "501"),
        (seen["grpc"], "StatusCode.INVALID_ARGUMENT", "StatusCode.UNIMPLEMENTED"),
    ):
        assert part["before"] == part["back"] == default
        assert part["after"] == default | {"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"}
        assert part["kept"]
        assert part["file"] == [unsupported, "log file location can not be updated through network protocol"]
        assert part["format"][0] == invalid
    assert '"event": "worker.ready"' in file.read_text()
    assert worker.log() == ""

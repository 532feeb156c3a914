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


RECEIVED = {"http": ["HTTP_RECV_START", "HTTP_RECV_END"], "grpc": ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END"]}
ENGINE = ["REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"]


@pytest.mark.slow  # a whole worker and a whole client start
async def test_trace(launch: Any, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    worker = await launch(f"--trace-config=triton,file={folder}/t", "--trace-config=rate=7")
    seen = await seen_by_client(worker, "trace")
    default = {
        "trace_file": [f"{folder}/t"],
        "trace_level": ["OFF"],
        "trace_rate": ["7"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_mode": ["triton"],
    }
    own = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": ["1"], "log_frequency": ["1"]}
    for part, invalid, unsupported in (
        (seen["http"], "400", "501"),
        (seen["grpc"], "StatusCode.INVALID_ARGUMENT", "StatusCode.UNIMPLEMENTED"),
    ):
        assert part["before"] == part["global"] == part["cleared"] == default
        assert part["model"] == default | own
        assert part["level"][0] == part["rate"][0] == part["unknown"][0] == invalid
        assert "Unable to parse 'trace_rate', got: x" in part["rate"][1]
        assert part["file"] == [unsupported, "trace file location can not be updated through network protocol"]
        assert "Request for unknown model : nope" in part["unknown"][1]
    worker.process.terminate()
    assert await asyncio.to_thread(worker.wait) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["t.0", "t.1"]
    for number, front in enumerate(("http", "grpc")):
        head, *records = json.loads((folder / f"t.{number}").read_text())
        assert (head["model_name"], head["request_id"]) == ("ident", f"tritonclient.{front}")
        events = [record["timestamps"][0] for record in records if "timestamps" in record]
        sent = [f"{front.upper()}_SEND_START", f"{front.upper()}_SEND_END"]
        assert [event["name"] for event in events] == [
            *RECEIVED[front],
            *ENGINE,
            "INFER_RESPONSE_COMPLETE",
            *sent,
            "REQUEST_END",
        ]
        times = [event["ns"] for event in events]
        assert times == sorted(times)
        shown = {record["activity"]: record["tensor"]["data"] for record in records if "activity" in record}
        assert shown == dict.fromkeys(
            ("TENSOR_QUEUE_INPUT", "TENSOR_BACKEND_INPUT", "TENSOR_BACKEND_OUTPUT"), "1.0,2.0,3.0,4.0"
        )


@pytest.mark.slow  # a whole worker and a whole client start
async def test_restricted_calls(launch: Any) -> None:
    group = "model-repository,trace:admin-key=let-me"
    worker = await launch(f"--http-restricted-api={group}", f"--grpc-restricted-protocol={group}")
    seen = await seen_by_client(worker, "restricted")
    for part, refused in (
        (seen["http"], ["403", "This API is restricted, expecting header 'admin-key'"]),
        (
            seen["grpc"],
            [
                "StatusCode.UNAVAILABLE",
                "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'",
            ],
        ),
    ):
        assert part["without"] == part["wrong"] == refused
        assert part["with"] == part["other"] == ["", ""]

"""Uses the protocol's extensions with an unmodified tritonclient; a process of its own, as triton_calls.py.

Usage: python triton_extensions.py PART HTTP_PORT GRPC_PORT. Prints what it saw as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

ROW = np.array([[1, 2, 3, 4]], np.float32)


def error_of(call: Any) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["", ""]


def shared_memory(library: Any, client: Any) -> dict[str, Any]:
    """Input and output in regions of one object each, then all that can go wrong."""
    key = f"/tms_client_{os.getpid()}"
    given, taken = (
        shm.create_shared_memory_region("given", key, 16),
        shm.create_shared_memory_region("taken", key + "o", 32),
    )
    try:
        shm.set_shared_memory_region(given, [ROW])
        client.register_system_shared_memory("given", key, 16)
        client.register_system_shared_memory("taken", key + "o", 32)
        tensor = library.InferInput("INPUT", [1, 4], "FP32")
        tensor.set_shared_memory("given", 16)
        output = library.InferRequestedOutput("OUTPUT")
        output.set_shared_memory("taken", 16, offset=16)
        result = client.infer("ident", [tensor], outputs=[output])
        seen = {
            "output": shm.get_contents_as_numpy(taken, np.float32, [1, 4], offset=16).tolist(),
            "told": told(result.get_output("OUTPUT")),
            "registered": status(client),
            "twice": error_of(lambda: client.register_system_shared_memory("given", key, 16)),
            "too_large": error_of(lambda: client.register_system_shared_memory("large", key, 2**40)),
            "cuda": error_of(lambda: client.register_cuda_shared_memory("c", b"eA==", 0, 8)),
        }
        output.set_shared_memory("taken", 8)
        seen["small"] = error_of(lambda: client.infer("ident", [tensor], outputs=[output]))
        client.unregister_system_shared_memory("given")
        seen["left"] = status(client)
        seen["unknown"] = error_of(lambda: client.infer("ident", [tensor]))
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        seen["none"] = status(client)
    finally:
        for region in (given, taken):
            shm.destroy_shared_memory_region(region)
    return seen


def told(output: Any) -> list[Any]:
    """Where an answer says that an output is."""
    if isinstance(output, dict):
        found = output["parameters"]
        return [found["shared_memory_region"], found["shared_memory_offset"], found["shared_memory_byte_size"]]
    found = output.parameters
    sizes = [found[f"shared_memory_{key}"].int64_param for key in ("offset", "byte_size")]
    return [found["shared_memory_region"].string_param, *sizes]


def status(client: Any) -> list[str]:
    found = client.get_system_shared_memory_status()
    return sorted(each["name"] for each in found) if isinstance(found, list) else sorted(found.regions)


def logging(library: Any, client: Any) -> dict[str, Any]:
    before = log_settings(client.get_log_settings())
    after = log_settings(
        client.update_log_settings({"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"})
    )
    return {
        "before": before,
        "after": after,
        "file": error_of(lambda: client.update_log_settings({"log_file": "/tmp/x"})),
        "format": error_of(lambda: client.update_log_settings({"log_format": "x"})),
        "kept": log_settings(client.get_log_settings()) == after,
        "back": log_settings(client.update_log_settings({name: before[name] for name in before if name != "log_file"})),
    }


def log_settings(found: Any) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    return {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in found.settings.items()}


def trace(library: Any, client: Any) -> dict[str, Any]:
    """Settings of all models and of one; one request of each."""
    change = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "1", "log_frequency": "1"}
    seen = {
        "before": trace_settings(client.get_trace_settings()),
        "model": trace_settings(client.update_trace_settings("ident", change)),
        "global": trace_settings(client.get_trace_settings()),
        "level": error_of(lambda: client.update_trace_settings(settings={"trace_level": "LOUD"})),
        "rate": error_of(lambda: client.update_trace_settings(settings={"trace_rate": "x"})),
        "file": error_of(lambda: client.update_trace_settings(settings={"trace_file": "x"})),
        "unknown": error_of(lambda: client.get_trace_settings("nope")),
    }
    tensor = library.InferInput("INPUT", [1, 4], "FP32")
    tensor.set_data_from_numpy(ROW)
    client.infer("ident", [tensor], request_id=library.__name__)
    client.infer("addsub", [library.InferInput(f"INPUT{at}", [1, 4], "FP32").set_data_from_numpy(ROW) for at in (0, 1)])
    cleared = client.update_trace_settings("ident", dict.fromkeys(change))
    return seen | {"cleared": trace_settings(cleared)}


def trace_settings(found: Any) -> dict[str, Any]:
    if isinstance(found, dict):
        return {name: each if isinstance(each, list) else [each] for name, each in found.items()}
    return {name: list(each.value) for name, each in found.settings.items()}


def restricted(library: Any, client: Any) -> dict[str, Any]:
    """The index is behind `admin-key`, which the worker was started with."""
    name = "admin-key" if library is httpclient else "triton-grpc-protocol-admin-key"
    return {
        "without": error_of(client.get_model_repository_index),
        "wrong": error_of(lambda: client.get_model_repository_index(headers={name: "x"})),
        "with": error_of(lambda: client.get_model_repository_index(headers={name: "let-me"})),
        "other": error_of(client.get_server_metadata),
    }


PARTS = {"shared_memory": shared_memory, "logging": logging, "trace": trace, "restricted": restricted}


if __name__ == "__main__":
    _, part, http_port, grpc_port = sys.argv
    with contextlib.ExitStack() as stack:
        over_http = stack.enter_context(httpclient.InferenceServerClient(f"127.0.0.1:{http_port}"))
        over_grpc = stack.enter_context(grpcclient.InferenceServerClient(f"127.0.0.1:{grpc_port}"))
        shown = {"http": PARTS[part](httpclient, over_http), "grpc": PARTS[part](grpcclient, over_grpc)}
    sys.stdout.write(json.dumps(shown))

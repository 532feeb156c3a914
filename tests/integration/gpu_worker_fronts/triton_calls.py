"""Calls a worker with an unmodified tritonclient; a process of its own, since two copies of package `inference` clash.

Usage: python triton_calls.py HTTP_PORT GRPC_PORT. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

SAMPLES: dict[str, Any] = {
    "BOOL": np.array([[True, False, True, True]]),
    "UINT8": np.array([[0, 1, 2, 255]], np.uint8),
    "INT8": np.array([[0, -1, 2, 127]], np.int8),
    "INT16": np.array([[0, -1, 2, 30000]], np.int16),
    "UINT16": np.array([[0, 1, 2, 60000]], np.uint16),
    "INT32": np.array([[0, -1, 2, 2**31 - 1]], np.int32),
    "UINT32": np.array([[0, 1, 2, 2**32 - 1]], np.uint32),
    "INT64": np.array([[0, -1, 2, 2**63 - 1]], np.int64),
    "UINT64": np.array([[0, 1, 2, 2**64 - 1]], np.uint64),
    "FP16": np.array([[0, -1, 0.5, 60000]], np.float16),
    "FP32": np.array([[0, -1, 0.1, 1e30]], np.float32),
    "FP64": np.array([[0, -1, 0.1, 1e300]], np.float64),
    "BYTES": np.array([[b"a", "é".encode(), b"", b"x" * 1000]], object),
}


def same(found: Any, sample: Any) -> bool:
    return found is not None and found.shape == sample.shape and bool((found == sample).all())


def http_round(client: Any, datatype: str, *, binary: bool) -> bool:
    sample = SAMPLES[datatype]
    tensor = httpclient.InferInput("INPUT", list(sample.shape), datatype)
    tensor.set_data_from_numpy(sample, binary_data=binary)
    output = httpclient.InferRequestedOutput("OUTPUT", binary_data=binary)
    result = client.infer(f"id_{datatype.lower()}", [tensor], outputs=[output], request_id="7")
    assert result.get_response()["id"] == "7"
    found = result.as_numpy("OUTPUT")
    if datatype == "BYTES" and not binary:
        found = np.array([text.encode() for text in found.ravel()], object).reshape(found.shape)
    return same(found, sample)


def grpc_input(datatype: str) -> Any:
    tensor = grpcclient.InferInput("INPUT", list(SAMPLES[datatype].shape), datatype)
    return tensor.set_data_from_numpy(SAMPLES[datatype])


def grpc_round(client: Any, datatype: str) -> bool:
    result = client.infer(f"id_{datatype.lower()}", [grpc_input(datatype)], request_id="7")
    return same(result.as_numpy("OUTPUT"), SAMPLES[datatype])


def error_of(call: Any) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["", ""]


def control(client: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {"ready": client.is_server_ready(), "live": client.is_server_live()}
    client.unload_model("id_int8")
    client.load_model("id_int8")
    seen["reloaded"] = client.is_model_ready("id_int8")
    seen["unknown"] = error_of(lambda: client.get_model_metadata("nope"))
    return seen


def stream(port: str) -> dict[str, Any]:
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for index in range(10):
            name = "nope" if index == 3 else "id_fp32"
            client.async_stream_infer(name, [grpc_input("FP32")], request_id=str(index))
        taken = [answers.get(timeout=60) for _ in range(10)]
        client.stop_stream()
    return {
        "ids": [None if error else result.get_response().id for result, error in taken],
        "errors": [error.message() for _, error in taken if error],
    }


def http_part(port: str) -> dict[str, Any]:
    with httpclient.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4) as client:
        json_types = [datatype for datatype in SAMPLES if datatype != "FP16"]
        pending = []
        for _ in range(20):
            tensor = httpclient.InferInput("INPUT", [1, 4], "FP32")
            tensor.set_data_from_numpy(SAMPLES["FP32"])
            pending.append(client.async_infer("id_fp32", [tensor], request_compression_algorithm="gzip"))
        return control(client) | {
            "json": {datatype: http_round(client, datatype, binary=False) for datatype in json_types},
            "binary": {datatype: http_round(client, datatype, binary=True) for datatype in SAMPLES},
            "async": all(same(call.get_result().as_numpy("OUTPUT"), SAMPLES["FP32"]) for call in pending),
            "platform": client.get_model_metadata("id_fp32")["platform"],
            "max_batch_size": client.get_model_config("id_fp32")["max_batch_size"],
            "count": client.get_inference_statistics("id_bool")["model_stats"][0]["inference_count"],
            "index": sorted(entry["name"] for entry in client.get_model_repository_index()),
        }


def grpc_part(port: str) -> dict[str, Any]:
    with grpcclient.InferenceServerClient(f"127.0.0.1:{port}") as client:
        return control(client) | {
            "raw": {datatype: grpc_round(client, datatype) for datatype in SAMPLES},
            "platform": client.get_model_metadata("id_fp32").platform,
            "max_batch_size": client.get_model_config("id_fp32").config.max_batch_size,
            "count": client.get_inference_statistics("id_bool").model_stats[0].inference_count,
            "index": sorted(entry.name for entry in client.get_model_repository_index().models),
            "stream": stream(port),
        }


if __name__ == "__main__":
    _, http_port, grpc_port = sys.argv
    sys.stdout.write(json.dumps({"http": http_part(http_port), "grpc": grpc_part(grpc_port)}))

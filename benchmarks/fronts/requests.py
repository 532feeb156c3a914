"""The requests that load generators send again and again, as files."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np

from benchmarks.fronts import models
from protos.inference.v2 import predict_pb2


@dataclasses.dataclass(frozen=True)
class Request:
    """One inference in every form; `head` is the header line of the binary HTTP body, `framed` is for h2load."""

    tensor_bytes: int
    message: pathlib.Path
    framed: pathlib.Path
    binary: pathlib.Path
    head: str
    json: pathlib.Path


def write(folder: pathlib.Path, columns: int) -> Request:
    """One row of `columns` FP32."""
    row = np.arange(columns, dtype="<f4")
    message = predict_pb2.ModelInferRequest(model_name=models.NAME, raw_input_contents=[row.tobytes()])
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, columns])
    raw = message.SerializeToString()
    tensor = {"name": "INPUT", "shape": [1, columns], "datatype": "FP32"}
    size = {"parameters": {"binary_data_size": row.nbytes}}
    header = json.dumps({"inputs": [tensor | size], "parameters": {"binary_data_output": True}}).encode()
    text = json.dumps({"inputs": [tensor | {"data": row.tolist()}]}).encode()
    return Request(
        row.nbytes,
        _put(folder / f"{columns}.message", raw),
        _put(folder / f"{columns}.framed", b"\0" + len(raw).to_bytes(4, "big") + raw),
        _put(folder / f"{columns}.binary", header + row.tobytes()),
        f"Inference-Header-Content-Length: {len(header)}",
        _put(folder / f"{columns}.json", text),
    )


def _put(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path

"""Models in Python for tests: each is written as somebody would write it for Triton's Python backend."""

from __future__ import annotations

import pathlib
import textwrap

HEAD = """
import os, signal, threading
import numpy as np
import triton_python_backend_utils as pb_utils

def array(request, name="INPUT"):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

def response(value, name="OUTPUT", **more):
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, np.asarray(value))], **more)

class TritonPythonModel:
"""

ECHO = """
def execute(self, requests):
    return [response(array(each)) for each in requests]
"""


def config(datatype: str = "FP32", dims: str = "-1", *, batch: int = 8, more: str = "") -> str:
    """INPUT to OUTPUT of the same type and dims."""
    tensor = f"data_type: TYPE_{datatype} dims: [{dims}]"
    return (
        f'max_batch_size: {batch}\ninput {{ name: "INPUT" {tensor} }}\noutput {{ name: "OUTPUT" {tensor} }}\n{more}\n'
    )


def put(repository: pathlib.Path, name: str, methods: str = ECHO, text: str | None = None) -> pathlib.Path:
    """Writes version 1 of a model whose class has these methods; its directory."""
    directory = repository / name
    (directory / "1").mkdir(parents=True)
    body = HEAD + textwrap.indent(textwrap.dedent(methods), "    ")
    (directory / "1" / "model.py").write_text(body)
    (directory / "config.pbtxt").write_text(config() if text is None else text)
    return directory


def instances(count: int) -> str:
    return f"instance_group {{ count: {count} kind: KIND_CPU }}"


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'

"""config.pbtxt, and configurations that come with a load: used or refused, and read back as they were."""

from __future__ import annotations

import json
import warnings

from google.protobuf import text_format

from gpu_worker.engine import border
from gpu_worker.repository import backends, completion, configuration, fields, support, tuning
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

NAME = "configurations"
_INPUTS = (port.TensorInfo("X", "FP32", (-1, 4)), port.TensorInfo("S", "BYTES", (-1,)))
_OUTPUTS = (port.TensorInfo("Y", "FP32", (-1, 4)), port.TensorInfo("U", "FP32", None))


def fuzz(data: bytes) -> None:
    """JSON behind a brace, else text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # told where the file is read
    read = configuration.from_json if data.startswith(b"{") else configuration.from_text
    try:
        with warnings.catch_warnings():
            # protobuf's reader of text warns of escapes that mean nothing, and reads on.
            warnings.simplefilter("ignore", DeprecationWarning)
            config = read("m", text)
        written = text_format.MessageToString(config)
        assert text_format.MessageToString(configuration.from_text("m", written)) == written
        _use(config)
    except border.InferenceError as error:
        assert error.kind in (border.ErrorKind.INVALID_ARGUMENT, border.ErrorKind.UNSUPPORTED)
        error.message.encode()  # goes to clients


def _use(config: model_config_pb2.ModelConfig) -> None:
    """All that a load does with it but for the model itself."""
    support.check(config)
    backends.settle(config, ["model.onnx"])
    configuration.fill(config, 0)
    configuration.served_versions(config, [1, 2])
    tuning.options(config, {})
    completion.complete(config, _INPUTS, _OUTPUTS, completion.Defaults())
    completion.check(config, _INPUTS, _OUTPUTS)
    assert not any(field.refused for field in fields.given(config))


def seeds() -> list[bytes]:
    texts = [
        'name: "m" platform: "onnxruntime_onnx" max_batch_size: 8',
        'input [{name: "X" data_type: TYPE_FP32 dims: [-1, 4]}] output [{name: "Y" data_type: TYPE_FP32 dims: [-1, 4]}]',
        "instance_group [{count: 2 kind: KIND_CPU}] dynamic_batching {preferred_batch_size: [4] max_queue_delay_microseconds: 9}",
        "version_policy {specific {versions: [1]}} model_warmup [{name: 'w' batch_size: 1}]",
        "dynamic_batching {priority_levels: 2 default_priority_level: 1 priority_queue_policy {key: 1 value {max_queue_size: 1}}}",
        'parameters {key: "intra_op_thread_count" value {string_value: "2"}} optimization {graph {level: 1}}',
        'input [{name: "X" data_type: TYPE_FP32 dims: [4] reshape {shape: [2, 2]}}]',
    ]
    overrides = [
        {"max_batch_size": 2, "instanceGroup": [{"count": 1}]},
        {"backend": "onnxruntime", "metricTags": {"a": "b"}},
    ]
    texts += ['{"name": "\\ud800"}', '{"\\udfff": 1}']
    texts.append("name: '\\355\\240\\200'")
    return [text.encode() for text in texts] + [json.dumps(each).encode() for each in overrides]

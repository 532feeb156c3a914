"""Whatever a configuration holds, it is read or refused: nothing crashes, hangs or gets past the checks."""

from __future__ import annotations

import json
import pathlib
import string
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from google.protobuf import json_format, text_format
from hypothesis import strategies

from gpu_worker import loader
from gpu_worker.engine import border
from gpu_worker.repository import backends, completion, configuration, fields, layout, support, tuning, warmup
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

_CONFIG = model_config_pb2.ModelConfig.DESCRIPTOR
_INPUTS = (port.TensorInfo("X", "FP32", (-1, 3)), port.TensorInfo("S", "BYTES", (-1,)))
_OUTPUTS = (port.TensorInfo("Y", "FP32", (-1, 2)), port.TensorInfo("U", "FP32", None))
_NAMES = strategies.sampled_from(["X", "S", "Y", "U", "Z", "", "m", "../x", "\0", "ä", "1.onnx"])
_NUMBERS = strategies.one_of(
    strategies.sampled_from([0, 1, -1, 2, 3, 4, 255, 256, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63)]),
    strategies.integers(-(2**65), 2**65),
)


def _message(descriptor: Any) -> strategies.SearchStrategy[dict[str, Any]]:
    """JSON of a message, mostly of the right types."""
    return strategies.fixed_dictionaries({}, optional={each.name: _field(each) for each in descriptor.fields})


def _field(field: Any) -> strategies.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = _value(field.message_type.fields_by_name["value"])
        return strategies.dictionaries(strategies.one_of(_NAMES, strategies.just("1")), value, max_size=2)
    value = _value(field)
    return strategies.lists(value, max_size=2) if field.is_repeated else value


def _value(field: Any) -> strategies.SearchStrategy[Any]:
    if field.message_type is not None:
        return strategies.deferred(lambda: _message(field.message_type))
    if field.enum_type is not None:
        names = [each.name for each in field.enum_type.values]
        return strategies.one_of(strategies.sampled_from(names), strategies.sampled_from([99, -1]))
    if field.cpp_type == field.CPPTYPE_STRING:
        return _NAMES
    if field.cpp_type == field.CPPTYPE_BOOL:
        return strategies.booleans()
    if field.cpp_type in {field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT}:
        return strategies.floats()
    return _NUMBERS


_ANYTHING = strategies.recursive(
    strategies.one_of(strategies.none(), strategies.booleans(), strategies.floats(), _NUMBERS, strategies.text()),
    lambda inner: strategies.one_of(
        strategies.lists(inner, max_size=3),
        strategies.dictionaries(
            strategies.one_of(strategies.sampled_from([each.name for each in _CONFIG.fields]), strategies.text()),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=20,
)


def _used(config: model_config_pb2.ModelConfig) -> None:
    """All that a load does with a configuration before and after the model itself is loaded."""
    support.check(config)
    backends.settle(config, ["model.onnx"])
    configuration.fill(config, 0)
    configuration.served_versions(config, [1, 2])
    tuning.options(config, {})
    completion.complete(config, _INPUTS, _OUTPUTS, completion.Defaults())
    completion.check(config, _INPUTS, _OUTPUTS)
    loader._spec(config, "1", {})
    assert not any(field.refused for field in fields.given(config))


def _error(call: Callable[[], object]) -> border.InferenceError | None:
    """What a call refuses with; anything else that it raises fails the test."""
    try:
        call()
    except border.InferenceError as error:
        return error
    return None


def _tried(config: model_config_pb2.ModelConfig) -> None:
    error = _error(lambda: _used(config))
    if error is not None:
        assert error.kind in {border.ErrorKind.INVALID_ARGUMENT, border.ErrorKind.UNSUPPORTED}
        assert "model 'm'" in error.message or "'m_" in error.message or "must be" in error.message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("model")


@hypothesis.given(written=_message(_CONFIG))
@hypothesis.settings(max_examples=300, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_any_configuration_is_used_or_refused(written: dict[str, Any]) -> None:
    text = json.dumps(written)
    error = _error(lambda: configuration.from_json("m", text))
    if error is not None:
        assert error.kind is border.ErrorKind.INVALID_ARGUMENT
        return
    config = configuration.from_json("m", text)
    again = configuration.from_text("m", text_format.MessageToString(config))
    assert again == config or str(again) == str(config), "nan is not itself"
    _tried(config)


@hypothesis.given(written=_ANYTHING)
@hypothesis.settings(max_examples=300, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_any_json_is_read_or_refused(written: Any) -> None:
    text = json.dumps(written)
    error = _error(lambda: configuration.from_json("m", text))
    if error is None:
        _tried(configuration.from_json("m", text))
    else:
        assert error.message.startswith(("Invalid config override: ", "config name "))


@hypothesis.given(strategies.text())
def test_any_text_is_no_crash_as_json(text: str) -> None:
    with pytest.raises(border.InferenceError, match="Invalid config override: "):
        configuration.from_json("m", f"({text}")


_WORDS = strategies.sampled_from(
    [
        *(each.name for each in _CONFIG.fields),
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "<",
        ">",
        '"x"',
        "1",
        "-1",
        "TYPE_FP32",
        "#",
    ]
)
_TEXT = strategies.one_of(
    strategies.text(alphabet=string.printable, max_size=80),
    strategies.text(max_size=40),
    strategies.lists(_WORDS, max_size=30).map(" ".join),
)


@hypothesis.given(text=_TEXT)
@hypothesis.settings(max_examples=400)
def test_any_text_is_read_or_refused(text: str) -> None:
    error = _error(lambda: configuration.from_text("m", text))
    if error is None:
        _tried(configuration.from_text("m", text))
    else:
        assert error.kind is border.ErrorKind.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{" * 100_000,
        "input {" * 50_000,
        "input [" * 50_000,
        "input: <" * 50_000,
        'name: "' + "\\" * 100_000,
        "max_batch_size: " + "9" * 100_000,
        "max_batch_size: 0x" + "f" * 100_000,
        "metric_tags { key: " * 20_000,
        "[type.googleapis.com/inference.ModelConfig] {" * 20_000,
        "parameters { key: 'a' value { string_value: " + "'a' " * 50_000 + "} }",
        "#" * 1_000_000,
        "\n" * 1_000_000,
    ],
    ids=lambda text: text[:12] + str(len(text)),
)
def test_deep_and_long_texts_end(text: str) -> None:
    error = _error(lambda: configuration.from_text("m", text))
    assert error is None or (error.kind is border.ErrorKind.INVALID_ARGUMENT and len(error.message) < 1000)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"input": ' * 50_000,
        '{"max_batch_size": ' + "9" * 100_000 + "}",
        '{"max_batch_size": 1e999999}',
        '{"input": {"name": "x"}}',
        '{"metric_tags": [1]}',
        '{"metric_tags": {"a": null}}',
        '{"name": "\\ud800"}',
        '{"name": null, "input": null}',
        '{"parameters": {"a": "b"}}',
        '{"model_warmup": [{"inputs": {"x": {"zero_data": true, "random_data": true}}}]}',
        '{"version_policy": {"latest": {}, "all": {}}}',
        '{"optimization": {"cuda": {"graph_spec": [{"input": {"x": {"dim": [[[1]]]}}}]}}}',
        '{"input": [' + '{"name": "x"},' * 20_000 + "{}]}",
        '{"@type": "x"}',
        "NaN",
        '{"max_batch_size": NaN}',
    ],
    ids=lambda text: text[:24] + str(len(text)),
)
def test_odd_overrides_are_read_or_refused(text: str) -> None:
    error = _error(lambda: configuration.from_json("m", text))
    assert error is None or (error.kind is border.ErrorKind.INVALID_ARGUMENT and len(error.message) < 1000)


@hypothesis.given(
    dims=strategies.lists(_NUMBERS, max_size=3),
    size=strategies.integers(0, 2**32 - 1),
    count=strategies.integers(0, 2**32 - 1),
    kind=strategies.sampled_from(["zero_data", "random_data", "input_data_file"]),
    file=_NAMES,
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_any_warm_up_is_made_or_refused(
    dims: list[int], size: int, count: int, kind: str, file: str, folder: pathlib.Path
) -> None:
    written = {
        "max_batch_size": 4,
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [2]}],
    }
    config = json_format.ParseDict(written, model_config_pb2.ModelConfig())
    each = config.model_warmup.add(name="w", batch_size=size, count=count)
    try:
        each.inputs["X"].data_type = model_config_pb2.TYPE_FP32
        each.inputs["X"].dims.extend(dims)
    except ValueError:
        return
    setattr(each.inputs["X"], kind, file if kind == "input_data_file" else True)
    model, directory = loader._spec(config, "1", {}), layout.ModelDirectory("m", folder)
    error = _error(lambda: warmup.samples(config, model, directory))
    if error is not None:
        assert error.kind is border.ErrorKind.INVALID_ARGUMENT
    else:
        assert all(each.feeds["X"].shape == (size, *dims) for each in warmup.samples(config, model, directory))

from __future__ import annotations

import pathlib

import pytest
from google.protobuf import text_format

from gpu_worker.engine import border
from gpu_worker.repository import completion, configuration, layout, override, support, tuning
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

DEFAULTS = completion.Defaults()


def parsed(text: str) -> model_config_pb2.ModelConfig:
    return configuration.from_text("m", text)


def info(name: str, *shape: int, datatype: str = "FP32", optional: bool = False) -> port.TensorInfo:
    return port.TensorInfo(name, datatype, shape, optional)


def completed(text: str, inputs: list[port.TensorInfo], outputs: list[port.TensorInfo]) -> model_config_pb2.ModelConfig:
    config = parsed(text)
    support.check(config)
    configuration.fill(config, 0)
    completion.complete(config, inputs, outputs, DEFAULTS)
    completion.check(config, inputs, outputs)
    return config


@pytest.mark.parametrize(
    "field",
    [
        "ensemble_scheduling { }",
        "sequence_batching { }",
        "batch_input { kind: BATCH_ELEMENT_COUNT }",
        "batch_output { }",
        "response_cache { enable: true }",
        "model_transaction_policy { decoupled: true }",
        'model_operations { op_library_filename: "x.so" }',
        'model_repository_agents { agents { name: "a" } }',
        "model_metrics { metric_control { } }",
        'metric_tags { key: "a" value: "b" }',
        'cc_model_filenames { key: "a" value: "b" }',
        'runtime: "x"',
        "input { reshape { } }",
        "input { allow_ragged_batch: true }",
        "input { is_shape_tensor: true }",
        "input { is_non_linear_format_io: true }",
        "output { reshape { } }",
        "output { is_shape_tensor: true }",
        "output { is_non_linear_format_io: true }",
        "instance_group { kind: KIND_MODEL }",
        'instance_group { profile: "0" }',
        "instance_group { passive: true }",
        'instance_group { host_policy: "x" }',
        "instance_group { secondary_devices { } }",
        "optimization { priority: PRIORITY_MAX }",
        "optimization { cuda { graphs: true } }",
        "optimization { cuda { busy_wait_events: true } }",
        "optimization { cuda { graph_spec { } } }",
        "optimization { cuda { output_copy_stream: true } }",
        "optimization { execution_accelerators { } }",
        "dynamic_batching { priority_levels: 2 }",
        "dynamic_batching { default_priority_level: 1 }",
        "dynamic_batching { priority_queue_policy { key: 1 value { } } }",
        "dynamic_batching { default_queue_policy { timeout_action: DELAY } }",
        'model_warmup { inputs { key: "x" value { input_data_file: "f" } } }',
        'backend: "python"',
        'platform: "tensorrt_plan"',
        'platform: "ensemble"',
    ],
)
def test_what_is_not_done_is_refused_by_its_name(field: str) -> None:
    with pytest.raises(border.InferenceError) as refused:
        support.check(parsed(field))
    assert refused.value.kind is border.ErrorKind.UNSUPPORTED
    if field != 'platform: "ensemble"':
        first = field.split(" ", maxsplit=1)[0].rstrip(":")
        assert first in refused.value.message


def test_what_changes_nothing_is_let_through() -> None:
    support.check(
        parsed(
            "optimization { input_pinned_memory { enable: true } gather_kernel_buffer_threshold: 1 eager_batching: true }"
            "input { format: FORMAT_NCHW } instance_group { rate_limiter { priority: 1 } }"
        )
    )


def test_an_absent_configuration_is_completed_from_a_batchable_model() -> None:
    config = completed("", [info("X", -1, 3)], [info("Y", -1, 2, datatype="BYTES")])
    expected = """
        name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" default_model_filename: "model.onnx"
        version_policy { latest { num_versions: 1 } } max_batch_size: 4
        input { name: "X" data_type: TYPE_FP32 dims: 3 } output { name: "Y" data_type: TYPE_STRING dims: 2 }
        instance_group { name: "m_0" kind: KIND_CPU count: 2 } dynamic_batching { preferred_batch_size: 4 }
    """
    assert config == text_format.Parse(expected, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("output", [info("Y", 2), info("Y"), port.TensorInfo("Y", "FP32", None)])
def test_a_model_that_cannot_batch_keeps_literal_shapes(output: port.TensorInfo) -> None:
    text = "" if output.shape is not None else 'output { name: "Y" data_type: TYPE_FP32 dims: 2 }'
    config = completed(text, [info("X", -1, 3)], [output])
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, 3]
    assert not config.HasField("dynamic_batching")


def test_written_values_are_kept_and_the_rest_filled_in() -> None:
    config = completed("max_batch_size: 16 instance_group { count: 3 }", [info("X", -1, 3)], [info("Y", -1)])
    assert config.max_batch_size == 16
    assert config.instance_group[0].count == 3
    assert list(config.dynamic_batching.preferred_batch_size) == [16]


def test_a_model_that_tells_no_shape_takes_the_configurations() -> None:
    text = 'max_batch_size: 8 output { name: "Y" data_type: TYPE_FP32 dims: 10 }'
    assert list(completed(text, [info("X", -1, 3)], [info("Y")]).output[0].dims) == [10]


def test_whole_shapes_in_the_configuration_mean_no_batching() -> None:
    text = 'input { name: "X" data_type: TYPE_FP32 dims: [-1, 3] }'
    assert completed(text, [info("X", -1, 3)], [info("Y", -1, 3)]).max_batch_size == 0


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (
            'max_batch_size: 8 input { name: "X" data_type: TYPE_FP32 dims: 4 }',
            "input 'X' has shape [-1, 4], the model has [-1, 3]",
        ),
        (
            'input { name: "X" data_type: TYPE_INT8 dims: [-1, 3] }',
            "data_type of input 'X' is INT8, the model has FP32",
        ),
        ('input { name: "Z" data_type: TYPE_FP32 dims: [-1, 3] }', "input 'Z' is not one of the model's inputs ['X']"),
        ('output { name: "Z" }', "output 'Z' is not one of the model's outputs ['Y']"),
        ('max_batch_size: 8 input { name: "X" data_type: TYPE_FP32 dims: 3 optional: true }', "cannot run without it"),
        ("max_batch_size: -1", "max_batch_size must not be negative"),
        (
            "max_batch_size: 8 dynamic_batching { preferred_batch_size: 9 }",
            "preferred_batch_size [9] must lie between 1 and 8",
        ),
        ('dynamic_batching { } input { name: "X" data_type: TYPE_FP32 dims: [-1, 3] }', "needs max_batch_size"),
    ],
)
def test_a_configuration_that_contradicts_the_model_is_refused(text: str, fragment: str) -> None:
    with pytest.raises(border.InferenceError) as refused:
        completed(text, [info("X", -1, 3)], [info("Y", -1, 3)])
    assert fragment in refused.value.message
    assert refused.value.kind is border.ErrorKind.INVALID_ARGUMENT


def test_strict_mode_wants_everything_written() -> None:
    config = parsed("")
    with pytest.raises(border.InferenceError, match="input and output must be given"):
        completion.complete(config, [info("X", -1)], [info("Y", -1)], completion.Defaults(auto_complete=False))


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", [3]),
        ("version_policy { latest { num_versions: 2 } }", [2, 3]),
        ("version_policy { all { } }", [1, 2, 3]),
        ("version_policy { specific { versions: [3, 1] } }", [1, 3]),
    ],
)
def test_the_version_policy_chooses(policy: str, served: list[int]) -> None:
    config = parsed(policy)
    configuration.fill(config, 0)
    assert configuration.served_versions(config, [1, 2, 3]) == served


def test_missing_versions_are_told() -> None:
    config = parsed("version_policy { specific { versions: [1, 7] } }")
    with pytest.raises(border.InferenceError, match=r"missing versions \[7\]"):
        configuration.served_versions(config, [1])
    with pytest.raises(border.InferenceError, match="at least one version must be available"):
        configuration.served_versions(parsed(""), [])


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("instance_group { kind: KIND_GPU }", "KIND_GPU, but no GPU can be used here"),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "instance_group.gpus of 'm_0' must be empty"),
        ("instance_group { count: -1 }", "instance_group.count of 'm_0' must lie between 0 and 256"),
        ("instance_group { count: 257 }", "instance_group.count of 'm_0' must lie between 0 and 256"),
    ],
)
def test_instance_groups_that_cannot_be_are_refused(text: str, fragment: str) -> None:
    with pytest.raises(border.InferenceError, match=fragment):
        configuration.fill(parsed(text), 0)


def test_instances_without_a_kind_go_to_gpus_where_there_are_any() -> None:
    config = parsed("")
    configuration.fill(config, 2)
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus), group.count) == (group.KIND_GPU, [0, 1], 1)
    with pytest.raises(border.InferenceError, match=r"names \[5\], but there are 2"):
        configuration.fill(parsed("instance_group { kind: KIND_GPU gpus: 5 }"), 2)


@pytest.mark.parametrize("text", ["nonsense: 1", "name: 3", 'name: "other"'])
def test_a_bad_file_is_refused(text: str) -> None:
    with pytest.raises(border.InferenceError):
        parsed(text)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"nonsense": 1}', '{"max_batch_size": "x"}', "[" * 100_000])
def test_a_bad_override_is_refused(text: str) -> None:
    with pytest.raises(border.InferenceError, match="Invalid config override"):
        configuration.from_json("m", text)


def test_parameters_tune_the_sessions() -> None:
    text = """
        instance_group { count: 1 }
        parameters { key: "intra_op_thread_count" value { string_value: "3" } }
        parameters { key: "execution_mode" value { string_value: "1" } }
        parameters { key: "gpu_mem_limit" value { string_value: "1024" } }
        parameters { key: "cudnn_conv_algo_search" value { string_value: "1" } }
        optimization { graph { level: -1 } }
    """
    options = tuning.options(parsed(text), {"inter_op_thread_count": "2"})
    assert options == port.SessionOptions(
        intra_op_threads=3,
        inter_op_threads=2,
        parallel=True,
        graph_level=-1,
        device_options={"gpu_mem_limit": "1024", "cudnn_conv_algo_search": "HEURISTIC"},
    )
    assert tuning.options(parsed("instance_group { count: 1 }"), {}).intra_op_threads == 0
    assert tuning.options(parsed("instance_group { count: 2 }"), {}).intra_op_threads == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("nonsense", "1"), ("execution_mode", "2"), ("intra_op_thread_count", "-1"), ("inter_op_thread_count", "1025")],
)
def test_bad_parameters_are_refused_by_name(key: str, value: str) -> None:
    text = f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    with pytest.raises(border.InferenceError, match=key):
        tuning.options(parsed(text), {})


def test_backend_config_is_checked() -> None:
    assert completion.Defaults.of({"default-max-batch-size": "8"}, 4, auto_complete=True).max_batch_size == 8
    for bad in ({"nonsense": "1"}, {"intra_op_thread_count": "x"}):
        with pytest.raises(border.InferenceError, match=next(iter(bad))):
            completion.Defaults.of(bad, 4, auto_complete=True)


@pytest.mark.parametrize("path", ["", ".", "..", "/etc/passwd", "../x", "1/../../x", "a\0b"])
def test_no_override_leaves_its_directory(path: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(border.InferenceError, match="must stay inside the model directory"):
        override.write("m", {"good": b"", path: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_versions_are_decimal_directories_without_leading_zero(tmp_path: pathlib.Path) -> None:
    for name in ("1", "10", "2", "03", "x", "-1", "²"):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m" / "7").write_text("a file")
    repository = layout.Repository([tmp_path])
    assert list(repository.find("m").versions()) == [1, 2, 10]


@pytest.mark.parametrize("name", ["", ".", "..", "m/1", "../m", "nope", ".hidden"])
def test_only_names_of_the_repository_are_found(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(border.InferenceError, match="failed to poll from model repository"):
        layout.Repository([tmp_path]).find(name)


def test_a_repository_that_is_none_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(border.InferenceError, match="is not a directory"):
        layout.Repository([tmp_path / "nope"])

from __future__ import annotations

import pathlib

import pytest
from google.protobuf import text_format
from structlog import testing

from gpu_worker.engine import border
from gpu_worker.repository import backends, completion, configuration, layout, override, tuning
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

DEFAULTS = completion.Defaults()


def parsed(text: str) -> model_config_pb2.ModelConfig:
    return configuration.from_text("m", text)


def info(name: str, *shape: int, datatype: str = "FP32", optional: bool = False) -> port.TensorInfo:
    return port.TensorInfo(name, datatype, shape, optional)


def completed(text: str, inputs: list[port.TensorInfo], outputs: list[port.TensorInfo]) -> model_config_pb2.ModelConfig:
    config = parsed(text)
    backends.settle(config, ["model.onnx"])
    configuration.fill(config, 0)
    completion.complete(config, inputs, outputs, DEFAULTS)
    completion.check(config, inputs, outputs)
    return config


def test_an_absent_configuration_is_completed_from_a_batchable_model() -> None:
    config = completed("", [info("X", -1, 3)], [info("Y", -1, 2, datatype="BYTES")])
    expected = """
        name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" default_model_filename: "model.onnx"
        version_policy { latest { num_versions: 1 } } max_batch_size: 4
        input { name: "X" data_type: TYPE_FP32 dims: 3 } output { name: "Y" data_type: TYPE_STRING dims: 2 }
        instance_group { name: "m_0" kind: KIND_CPU count: 2 } dynamic_batching { preferred_batch_size: 4 }
        optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
    """
    assert config == text_format.Parse(expected, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("output", [info("Y", 2), port.TensorInfo("Y", "FP32", None)])
def test_a_model_that_cannot_batch_keeps_literal_shapes(output: port.TensorInfo) -> None:
    text = "" if output.shape is not None else 'output { name: "Y" data_type: TYPE_FP32 dims: 2 }'
    config = completed(text, [info("X", -1, 3)], [output])
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, 3]
    assert not config.HasField("dynamic_batching")


def test_written_values_are_kept_and_the_rest_filled_in() -> None:
    config = completed("max_batch_size: 16 instance_group { count: 3 }", [info("X", -1, 3)], [info("Y", -1, 1)])
    assert config.max_batch_size == 16
    assert config.instance_group[0].count == 3
    assert list(config.dynamic_batching.preferred_batch_size) == [16]


def test_a_tensor_without_dimensions_becomes_one_of_one_element() -> None:
    batched = completed("", [info("X", -1, 3)], [info("Y", -1)]).output[0]
    assert (list(batched.dims), batched.HasField("reshape"), list(batched.reshape.shape)) == ([1], True, [])
    literal = completed("", [info("X", 3)], [info("Y")]).output[0]
    assert (list(literal.dims), literal.HasField("reshape")) == ([1], False)


BOTH = 'input { name: "X" data_type: TYPE_FP32 dims: 3 } output { name: "Y" data_type: TYPE_FP32 dims: 2 }'


def test_nothing_is_completed_where_inputs_and_outputs_are_written() -> None:
    config = completed(f"max_batch_size: 8 {BOTH}", [info("X", -1, 3)], [info("Y", -1, 2)])
    assert config.WhichOneof("scheduling_choice") is None
    with pytest.raises(border.InferenceError, match=r"input 'X' has shape \[3\], the model has \[-1, 3\]"):
        completed(BOTH, [info("X", -1, 3)], [info("Y", -1, 2)])


def test_a_dynamic_batcher_without_sizes_prefers_the_largest() -> None:
    config = completed(f"max_batch_size: 8 dynamic_batching {{ }} {BOTH}", [info("X", -1, 3)], [info("Y", -1, 2)])
    assert list(config.dynamic_batching.preferred_batch_size) == [8]


def test_a_batch_size_for_a_model_that_cannot_batch_is_refused() -> None:
    with pytest.raises(border.InferenceError, match=r"max_batch_size is 8, but the model cannot batch: 'X'.*\[2, 3\]"):
        completed("max_batch_size: 8", [info("X", 2, 3)], [info("Y", -1, 2)])


RESHAPED = 'max_batch_size: 8 input { name: "X" data_type: TYPE_FP32 dims: [%s] reshape { shape: [%s] } }'


@pytest.mark.parametrize(
    ("dims", "shape"), [("6", "2, 3"), ("-1, 2, 3", "1, -1, 6"), ("1", ""), ("1, 1", ""), ("-1", "-1, 1")]
)
def test_a_reshape_is_checked_against_the_model(dims: str, shape: str) -> None:
    sizes = [int(dim) for dim in shape.split(", ")] if shape else []
    config = completed(RESHAPED % (dims, shape), [info("X", -1, *sizes)], [info("Y", -1, 2)])
    assert list(config.input[0].reshape.shape) == sizes


@pytest.mark.parametrize(
    ("dims", "shape"), [("6", "2, 2"), ("-1", "-1, -1"), ("-1, 2", "2, -1"), ("-1, 2, -1", "-1, -1, 2"), ("2", "")]
)
def test_a_reshape_that_moves_or_loses_elements_is_refused(dims: str, shape: str) -> None:
    sizes = [int(dim) for dim in shape.split(", ")] if shape else []
    with pytest.raises(border.InferenceError, match="reshape of input 'X' turns"):
        completed(RESHAPED % (dims, shape), [info("X", -1, *sizes)], [info("Y", -1, 2)])


def test_a_reshape_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(border.InferenceError, match=r"input 'X' has shape \[-1, 2, 3\], the model has \[-1, 3, 2\]"):
        completed(RESHAPED % ("6", "2, 3"), [info("X", -1, 3, 2)], [info("Y", -1, 2)])


@pytest.mark.parametrize(
    ("text", "name", "contents"),
    [
        ("", "m", ["model.onnx", "notes"]),
        ('default_model_filename: "x.onnx"', "m", ["x.onnx"]),
        ('platform: "onnxruntime_onnx"', "m", []),
        ('backend: "onnxruntime"', "m", ["model.py"]),
        ("", "m.onnxruntime", ["x"]),
    ],
)
def test_the_backend_is_told_by_configuration_files_or_name(text: str, name: str, contents: list[str]) -> None:
    config = configuration.from_text(name, text)
    backends.settle(config, contents)
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")


@pytest.mark.parametrize(
    ("name", "contents", "fragment"),
    [
        ("m", ["model.plan"], "backend 'tensorrt'"),
        ("m.mine", [], "backend 'mine'"),
        ("m", ["x"], r"could not determine the backend of model 'm'.*m\.<backend>"),
    ],
)
def test_a_model_of_another_backend_is_refused(name: str, contents: list[str], fragment: str) -> None:
    with pytest.raises(border.InferenceError, match=fragment):
        backends.settle(configuration.from_text(name, ""), contents)


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
        *(
            (f"max_batch_size: 8 dynamic_batching {{ {text} }}", fragment)
            for text, fragment in (
                ("priority_levels: 2", "default priority level must be in range [1, 2]"),
                ("priority_levels: 2 default_priority_level: 3", "default priority level must be in range [1, 2]"),
                (
                    "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } }",
                    "priority queue policy must have priority level in range [1, 2], not 3",
                ),
                (
                    "priority_levels: 2 default_priority_level: 1 preserve_ordering: true",
                    "Only one priority level is allowed when 'preserve_ordering' is true",
                ),
                (
                    "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 }",
                    "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true",
                ),
            )
        ),
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


def test_missing_versions_are_logged_and_the_others_served() -> None:
    config = parsed("version_policy { specific { versions: [7, 1] } }")
    with testing.capture_logs() as logs:
        assert configuration.served_versions(config, [1, 2]) == [1]
    assert [(entry["event"], entry["versions"]) for entry in logs] == [("version.missing", [7])]
    for nothing in (parsed(""), config):
        with pytest.raises(border.InferenceError, match="at least one version must be available"):
            configuration.served_versions(nothing, [])


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("instance_group { kind: KIND_GPU }", "KIND_GPU, but no GPU can be used here"),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "instance_group.gpus of 'm_0' must be empty"),
        ("instance_group { count: -1 }", "instance_group.count of 'm_0' must lie between 0 and 256"),
        ("instance_group { count: 257 }", "instance_group.count of 'm_0' must lie between 0 and 256"),
        ("instance_group { count: 256 }" * 4 + "instance_group { }", "model 'm' asks for 1026 instances: at most 1024"),
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
    accelerated = tuning.options(
        parsed(
            'parameters { key: "share_session_between_instances" value { string_value: "true" } }'
            'parameters { key: "session.use_device_allocator_for_initializers" value { string_value: "1" } }'
            'parameters { key: "do_copy_in_default_stream" value { string_value: "0" } }'
            "optimization { execution_accelerators { gpu_execution_accelerator {"
            '  name: "cuda" parameters { key: "use_tf32" value: "0" } } } }'
        ),
        {},
    )
    assert accelerated.share
    assert accelerated.session_entries == {"session.use_device_allocator_for_initializers": "1"}
    assert accelerated.device_options == {"use_tf32": "0", "do_copy_in_default_stream": "0"}
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


@pytest.mark.parametrize(
    ("accelerator", "fragment"),
    [
        ('name: "tensorrt"', "gpu_execution_accelerator 'tensorrt'"),
        ('name: "cuda" parameters { key: "user_compute_stream" value: "1" }', "user_compute_stream"),
    ],
)
def test_other_accelerators_are_refused(accelerator: str, fragment: str) -> None:
    text = f"optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ {accelerator} }} }} }}"
    with pytest.raises(border.InferenceError, match=fragment) as refused:
        tuning.options(parsed(text), {})
    assert refused.value.kind is border.ErrorKind.UNSUPPORTED


CONTROL = "model_metrics { metric_control { metric_identifier { family: '%s' } histogram_options { buckets: [%s] } } }"


@pytest.mark.parametrize(
    ("family", "buckets"),
    [
        ("nv_inference_count", "1"),
        ("", "1"),
        *((configuration.FIRST_RESPONSE, each) for each in ("", "0, 1", "2, 1", "1, 1", "nan", "1, inf", "-1")),
        (configuration.FIRST_RESPONSE, ", ".join(map(str, range(1, 102)))),
    ],
)
def test_buckets_that_cannot_be_are_refused(family: str, buckets: str) -> None:
    with pytest.raises(border.InferenceError, match="model_metrics of model 'm'"):
        configuration.fill(parsed(CONTROL % (family, buckets)), 0)


@pytest.mark.parametrize("tag", ["", "a-b", "a b", 'a"', "\u00e4"])
def test_tags_that_are_no_labels_are_refused(tag: str) -> None:
    config = parsed("")
    config.metric_tags[tag] = "x"
    with pytest.raises(border.InferenceError, match="metric_tags"):
        configuration.fill(config, 0)


def test_backend_config_is_checked() -> None:
    assert completion.Defaults.of({"default-max-batch-size": "8"}, 4, auto_complete=True).max_batch_size == 8
    for bad in ({"nonsense": "1"}, {"intra_op_thread_count": "x"}):
        with pytest.raises(border.InferenceError, match=next(iter(bad))):
            completion.Defaults.of(bad, 4, auto_complete=True)


@pytest.mark.parametrize("path", ["", ".", "..", "/etc/passwd", "../x", "1/../../x", "a\0b"])
def test_no_override_leaves_its_directory(path: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = override.Store()
    with pytest.raises(border.InferenceError, match="must stay inside the model directory"):
        store.write("m", {"good": b"", path: b"x"})
    assert list(tmp_path.glob("*/*")) == []
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_versions_are_decimal_directories_without_leading_zero(tmp_path: pathlib.Path) -> None:
    ignored = {"03", "x", "-1", "²", str(2**63), "9" * 5000}
    for name in ("1", "10", "2", "0", str(2**63 - 1), "configs", "warmup", ".git", *(n[:255] for n in ignored)):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m" / "7").write_text("a file")
    repository = layout.Repository([tmp_path])
    with testing.capture_logs() as logs:
        assert list(repository.find("m").versions()) == [0, 1, 2, 10, 2**63 - 1]
    assert {entry["directory"] for entry in logs} == {name[:255] for name in ignored}


def test_a_fingerprint_follows_links_but_not_in_circles(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_text(name)
    model = tmp_path / "models" / "m"
    model.mkdir(parents=True)
    (model / "1").symlink_to(tmp_path / "a")
    for name in ("round", "about"):
        (tmp_path / "a" / name).symlink_to(model)
    (model / "gone").symlink_to(tmp_path / "nowhere")
    found = layout.Repository([tmp_path / "models"]).find("m")
    first = found.files()
    assert [[file[0] for file in files] for files in first.values()] == [[], ["1/model.onnx"]]
    (model / "1").unlink()
    (model / "1").symlink_to(tmp_path / "b")
    assert found.files()["1"] != first["1"]


def test_a_named_configuration_goes_before_the_models_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "m" / "configs").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text("own")
    (tmp_path / "m" / "configs" / "small.pbtxt").write_text("small")
    found = {name: layout.Repository([tmp_path], name).find("m").config_text() for name in ("", "small", "other")}
    assert found == {"": "own", "small": "small", "other": "own"}
    for bad in ("..", "../x", "/etc/passwd", "a\0"):
        with pytest.raises(border.InferenceError, match="model config name"):
            layout.Repository([tmp_path], bad)


@pytest.mark.parametrize("text", [b"\xff", b"#" * (4 * 2**20 + 1)])
def test_a_configuration_that_cannot_be_read_is_told(text: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_bytes(text)
    with pytest.raises(border.InferenceError, match=r"config\.pbtxt of model 'm'"):
        layout.Repository([tmp_path]).find("m").config_text()


@pytest.mark.parametrize("name", ["", ".", "..", "m/1", "../m", "nope", ".hidden"])
def test_only_names_of_the_repository_are_found(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(border.InferenceError, match="failed to poll from model repository"):
        layout.Repository([tmp_path]).find(name)


def test_a_repository_that_is_none_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(border.InferenceError, match="is not a directory"):
        layout.Repository([tmp_path / "nope"])

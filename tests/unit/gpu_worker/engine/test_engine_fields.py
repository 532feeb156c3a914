"""Every field of a configuration is told of, and is let through or refused as the table says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import message

from gpu_worker.engine import border
from gpu_worker.repository import fields, support
from protos.inference.v2 import model_config_pb2

TEXTS = {"platform": "onnxruntime_onnx", "backend": "onnxruntime"}


def leaves(descriptor: Any, prefix: str = "") -> Iterator[str]:
    for field in descriptor.fields:
        path = prefix + field.name
        below = _below(field)
        found = list(leaves(below, f"{path}.")) if below is not None else []
        yield from found or [path]


def _below(field: Any) -> Any:
    """The message that a field, or a map's values, hold."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return field.message_type.fields_by_name["value"].message_type
    return field.message_type


def giving(path: str, only: str) -> model_config_pb2.ModelConfig:
    """A configuration that sets that path to something that is not its default."""
    config = model_config_pb2.ModelConfig()
    _set(config, path.split("."), TEXTS.get(path, "x"), only)
    return config


def _set(into: message.Message, names: list[str], text: str, only: str) -> None:
    field: Any = into.DESCRIPTOR.fields_by_name[names[0]]
    content = getattr(into, names[0])
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if _below(field) is None:
            content["key"] = text
            return
        key = field.message_type.fields_by_name["key"]
        below = content[_value(key, "key", "")]
    elif field.message_type is not None:
        below = content.add() if field.is_repeated else content
        below.SetInParent() if not field.is_repeated else None
    else:
        value = _value(field, text, only)
        content.append(value) if field.is_repeated else setattr(into, names[0], value)
        return
    if names[1:]:
        _set(below, names[1:], text, only)
    elif not field.is_repeated and below.DESCRIPTOR.fields:
        _set(below, [below.DESCRIPTOR.fields[0].name], text, only)


def _value(field: Any, text: str, only: str) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_name[only].number if only else field.enum_type.values[-1].number
    return text if field.cpp_type == field.CPPTYPE_STRING else 1


def test_no_field_is_missing_from_the_table() -> None:
    assert [path for path in leaves(model_config_pb2.ModelConfig.DESCRIPTOR) if fields.row(path) is None] == []


def test_no_row_tells_of_a_field_that_is_none() -> None:
    known = list(leaves(model_config_pb2.ModelConfig.DESCRIPTOR))
    assert [
        field.path
        for field in fields.FIELDS
        if not any(path == field.path or path.startswith(f"{field.path}.") for path in known)
    ] == []
    assert len({(field.path, field.only) for field in fields.FIELDS}) == len(fields.FIELDS)


@pytest.mark.parametrize("field", [each for each in fields.FIELDS if each.refused], ids=lambda field: field.shown)
def test_what_is_not_done_is_refused_by_its_name_with_the_reason(field: fields.Field) -> None:
    with pytest.raises(border.InferenceError) as refused:
        support.check(giving(field.path, field.only))
    assert refused.value.kind is border.ErrorKind.UNSUPPORTED
    assert f"{field.shown} ({field.words})" in refused.value.message


@pytest.mark.parametrize("field", [each for each in fields.FIELDS if not each.refused], ids=lambda field: field.shown)
def test_what_is_done_or_changes_nothing_is_let_through(field: fields.Field) -> None:
    only = {"instance_group.kind": "KIND_CPU", "dynamic_batching.default_queue_policy.timeout_action": "REJECT"}
    support.check(giving(field.path, only.get(field.path, "")))


@pytest.mark.parametrize("text", ['backend: "tensorrt"', 'platform: "tensorrt_plan"'])
def test_other_backends_are_refused(text: str) -> None:
    config = model_config_pb2.ModelConfig()
    name, _, value = text.partition(": ")
    setattr(config, name, value.strip('"'))
    with pytest.raises(border.InferenceError, match=name) as refused:
        support.check(config)
    assert refused.value.kind is border.ErrorKind.UNSUPPORTED


def test_all_that_is_refused_is_told_at_once() -> None:
    config = model_config_pb2.ModelConfig(name="m", runtime="x")
    config.model_repository_agents.agents.add(name="a")
    with pytest.raises(
        border.InferenceError, match=r"model 'm': not supported: model_repository_agents .*; runtime .*"
    ):
        support.check(config)


def test_what_is_turned_off_is_not_asked_for() -> None:
    config = model_config_pb2.ModelConfig()
    config.response_cache.enable = False
    config.model_transaction_policy.decoupled = False
    config.optimization.cuda.graphs = False
    support.check(config)

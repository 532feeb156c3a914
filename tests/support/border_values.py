"""Any value of the border, as hypothesis makes them."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from gpu_worker.engine import border
from protos.inference.v2 import model_config_pb2

INTEGERS = st.integers() | st.integers(-(2**63), 2**64)
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
PARAMETERS = st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXT
BUFFERS = st.binary(max_size=200)


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type of the border."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (border.Buffer, bytes):
        return BUFFERS
    if origin is tuple:
        inner = of(arguments[0])
        return st.lists(inner, max_size=4).map(tuple) if arguments[-1] is ... else st.tuples(*map(of, arguments))
    if origin in (list, Sequence):
        return st.lists(of(arguments[0]), max_size=4)
    if origin in (dict, Mapping):
        return st.dictionaries(of(arguments[0]), of(arguments[1]), max_size=4)
    if arguments:
        return st.one_of(*map(of, arguments))
    return _named(kind)


def _named(kind: Any) -> st.SearchStrategy[Any]:
    if dataclasses.is_dataclass(kind):
        return records(kind)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: INTEGERS,
        float: st.floats(allow_nan=False),
        str: TEXT,
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[kind]


def records(kind: Any, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Instances of a dataclass, each field of what its annotation says."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    return st.builds(kind, **{name: given[name] if name in given else of(hints[name]) for name in names})


def everything() -> list[type[Any]]:
    """The border's dataclasses that are values."""
    found = [kind for _, kind in sorted(vars(border).items()) if isinstance(kind, type)]
    return [kind for kind in found if dataclasses.is_dataclass(kind) and kind is not border.InferRequest]


def requests() -> st.SearchStrategy[border.InferRequest]:
    """Requests; replies are nobody's."""
    return records(
        border.InferRequest,
        reply=st.just(unanswered),
        cancelled=st.just(False),  # noqa: FBT003 - hypothesis' form
        on_cancel=st.none(),
        form=st.none(),
    )


def unanswered(answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
    """The reply of requests that nobody answers."""


CONFIGS = st.builds(
    model_config_pb2.ModelConfig,
    name=st.text(max_size=5),
    max_batch_size=st.integers(0, 2**31 - 1),
    input=st.lists(
        st.builds(model_config_pb2.ModelInput, dims=st.lists(st.integers(-1, 2**62), max_size=3)), max_size=2
    ),
)

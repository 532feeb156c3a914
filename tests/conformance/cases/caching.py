"""The response cache: what is asked again, and how it is counted; sections 4.7 and 6.4 of the contract."""

from __future__ import annotations

from collections.abc import Iterator

from protos.inference.v2 import predict_pb2 as pb
from tests.conformance import case, tensors
from tests.conformance.case import Case
from tests.conformance.cases import repository
from tests.conformance.tensors import body, output, tensor

_SECTION = "Response cache"
_LOAD, _UNLOAD = repository.load("cached"), repository.unload("cached")
_COUNTED = frozenset(("ns", "last_inference", "memory_usage"))


def cases() -> Iterator[Case]:
    yield from case.named("cache", [*_asked(), *_counted()])


def _ask(*values: float) -> case.Http:
    return tensors.ask("cached", body([tensor("INPUT", "FP32", [len(values) // 4, 4], values)]))


def _asked() -> Iterator[Case]:
    binary = tensors.ask(
        "cached",
        body([tensor("INPUT", "FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])], [output("OUTPUT", binary_data=True)], id="again"),
    )
    yield Case(
        id="http/again",
        section=_SECTION,
        row="the same inputs again, with another id and as another form",
        before=(_LOAD, _ask(1.0, 2.0, 3.0, 4.0)),
        call=binary,
        after=(_UNLOAD,),
        setup="caching",
    )
    yield Case(
        id="http/config",
        section=_SECTION,
        row="configuration with a cache",
        before=(_LOAD,),
        call=case.get("/v2/models/cached/config"),
        after=(_UNLOAD,),
        masked=frozenset({"platform", "backend", "default_model_filename"}),
        setup="caching",
    )
    yield Case(
        id="http/without",
        section=_SECTION,
        row="a model with a cache on a server without one",
        before=(_LOAD, _ask(1.0, 2.0, 3.0, 4.0)),
        call=_ask(1.0, 2.0, 3.0, 4.0),
        after=(_UNLOAD,),
    )


def _counted() -> Iterator[Case]:
    calls: tuple[tuple[case.Call, bytes, float], ...] = (
        (case.get("/v2/models/cached/stats"), b'"success":{"count":5', 5.0),
        (case.rpc("ModelStatistics", pb.ModelStatisticsRequest(name="cached")), b"\x08\x05\x10", 6.0),
    )
    for transport, (call, settles, value) in zip(("http", "grpc"), calls, strict=True):
        one, two = (value,) * 4, (value,) * 8
        yield Case(
            id=f"{transport}/counted",
            section=_SECTION,
            row="statistics after two misses and three hits",
            before=(_LOAD, _ask(*one), _ask(*two), _ask(*two), _ask(*one), _ask(*two)),
            call=call,
            after=(_UNLOAD,),
            masked=_COUNTED,
            settles=settles,
            setup="caching",
        )

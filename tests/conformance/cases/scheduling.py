"""The schedule policy: priorities, time-outs and bounds of queues; sections 4.2 and 6.1 of the contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.conformance import case, tensors
from tests.conformance.case import Case, Text
from tests.conformance.cases import repository
from tests.conformance.tensors import Raw, body, tensor

_SECTION = "Schedule policy"
_FOUR = [1.0, 2.0, 3.0, 4.0]
_RAW = Raw("INPUT", "FP32", [1, 4], tensors.wire("FP32", _FOUR))


def cases() -> Iterator[Case]:
    yield from case.named("schedule", [*_asked(), *_full(), *_configured()])
    yield from case.named("rates", list(_limited()))


def _asked() -> Iterator[Case]:
    asked: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
        ("expired", "waits longer than its level allows", "impatient", {}),
        ("delayed", "waits longer than its level allows, which delays it", "impatient", {"priority": 1}),
        ("level-0", "priority 0: the default level", "impatient", {"priority": 0}),
        ("level-beyond", "priority of a level there is not: the default one", "impatient", {"priority": 3}),
        ("sooner", "timeout below the level's own", "impatient", {"timeout": 1}),
        ("later", "timeout above the level's own", "impatient", {"timeout": 60_000_000}),
        ("no-override", "timeout where the queue allows none", "strict", {"timeout": 1}),
        ("no-default", "timeout where the queue has none of its own", "unbounded", {"timeout": 1}),
        ("no-levels", "priority where there are no levels", "strict", {"priority": 1}),
    )
    for name, row, model, parameters in asked:
        told = body([tensor("INPUT", "FP32", [1, 4], _FOUR)], parameters=parameters, id="one")
        yield Case(id=f"http/{name}", section=_SECTION, row=row, call=tensors.ask(model, told))
        call = tensors.infer(model, [_RAW], parameters=parameters, request_id="one")
        yield Case(id=f"grpc/{name}", section=_SECTION, row=row, call=call)


def _full() -> Iterator[Case]:
    """The second of two requests finds the first in the queue; the third, on another level, finds nobody."""
    for name, model, priorities in (("full", "narrow", (0, 0)), ("full-level", "levelled", (2, 1, 2))):
        requests = [
            tensors.request(model, [_RAW], request_id=f"r{index}", parameters={"priority": priority})
            for index, priority in enumerate(priorities)
        ]
        yield Case(
            id=f"grpc/{name}",
            section=_SECTION,
            row="a request that finds the queue of its level full",
            call=case.rpc("ModelStreamInfer", *requests),
        )


def _configured() -> Iterator[Case]:
    yield Case(
        id="http/config",
        section=_SECTION,
        row="configuration with levels and policies",
        call=case.get("/v2/models/impatient/config"),
        masked=frozenset({"platform", "backend", "default_model_filename"}),
    )
    for name, row in (
        ("levels", "a default level that is none"),
        ("policy", "a policy for a level that is none"),
        ("order", "several levels whose order is kept"),
        ("delay", "delays where order is kept"),
    ):
        yield Case(
            id=f"http/wrong-{name}",
            section=_SECTION,
            row=f"load of a configuration with {row}",
            call=repository.load(f"wrong_{name}"),
            after=(repository.unload(f"wrong_{name}"),),
            text=Text.FREE,
        )


def _limited() -> Iterator[Case]:
    load, unload = repository.load("limited"), repository.unload("limited")
    ask = tensors.ask("limited", body([tensor("INPUT", "FP32", [1, 4], _FOUR)]))
    row = "a model whose instances share resources"
    yield Case(
        id="http/limited", section=_SECTION, row=row, before=(load,), call=ask, after=(ask, unload), setup="limiting"
    )
    yield Case(
        id="http/config",
        section=_SECTION,
        row=f"configuration of {row}",
        before=(load,),
        call=case.get("/v2/models/limited/config"),
        after=(unload,),
        masked=frozenset({"platform", "backend", "default_model_filename"}),
        setup="limiting",
    )
    yield Case(
        id="http/greedy",
        section=_SECTION,
        row="load of a model whose instances need more than there is",
        call=repository.load("greedy"),
        text=Text.FREE,
        setup="limiting",
    )

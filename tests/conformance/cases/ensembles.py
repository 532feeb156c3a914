"""Ensembles: what their clients see, and how they come and go with what they are composed of; sections 4.6 and 6."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protos.inference.v2 import predict_pb2 as pb
from tests.conformance import case, tensors
from tests.conformance.case import Case, Text
from tests.conformance.cases import repository
from tests.conformance.tensors import Raw, body, output, tensor

_SECTION = "Ensembles"
_TIMES = frozenset(("ns", "last_inference", "memory_usage"))
_ROW = [1.0, 2.0, 3.0, 4.0]
_IN = tensor("IN", "FP32", [1, 4], _ROW)
_TWO = tensor("IN", "FP32", [2], [1.0, 2.0])


def cases() -> Iterator[Case]:
    yield from case.named("ensembles", [*_asked(), *_sequences(), *_refused(), *_shapes(), *_life(), *_failing()])


def _case(name: str, row: str, model: str, call: case.Call, **more: Any) -> Case:
    """A case with the ensemble loaded for it."""
    before, after = (repository.load(model),), (repository.unload(model),)
    return Case(id=name, section=_SECTION, row=row, before=before, call=call, after=after, **more)


def _asked() -> Iterator[Case]:
    wire = [Raw("IN", "FP32", [1, 4], tensors.wire("FP32", _ROW))]
    for model, row in (("e_fork", "steps side by side"), ("e_outer", "an ensemble of an ensemble")):
        given = _IN if model == "e_fork" else _TWO
        yield _case(f"http/{model}", row, model, tensors.ask(model, body([given], id="x")))
    yield _case("grpc/e_fork", "steps side by side", "e_fork", tensors.infer("e_fork", wire, request_id="x"))
    yield _case(
        "http/binary",
        "binary tensors",
        "e_fork",
        tensors.ask("e_fork", body([_IN], parameters={"binary_data_output": True})),
    )
    yield _case("http/some", "some of the outputs", "e_fork", tensors.ask("e_fork", body([_IN], [output("COPY")])))
    for name in ("SUM", "COPY"):
        yield _case(
            f"http/inner-{name.lower()}",
            "some of the outputs, of steps after each other",
            "e_chain",
            tensors.ask("e_chain", body([_IN], [output(name)])),
        )
    yield _case("http/version", "a step with a version", "e_version", tensors.ask("e_version", body([_TWO])))
    parameters = {"mine": "x", "priority": 1, "timeout": 1000000}
    yield _case("http/parameters", "parameters", "e_fork", tensors.ask("e_fork", body([_IN], parameters=parameters)))
    given = tensor("IN", "FP32", [1, 8], [0.5, 8.0, 3.0, 1.0, 7.0, 2.0, 0.0, 6.0])
    yield _case(
        "http/classes",
        "classes, with the labels of the step",
        "e_classes",
        tensors.ask("e_classes", body([given], [output("OUT", classification=2)])),
    )
    yield _case("http/metadata", "metadata", "e_fork", case.get("/v2/models/e_fork"))
    request = pb.ModelMetadataRequest(name="e_fork")
    yield _case("grpc/metadata", "metadata", "e_fork", case.rpc("ModelMetadata", request))
    ask = tensors.ask("e_counted", body([_IN]))
    yield Case(
        id="http/statistics",
        section=_SECTION,
        row="statistics",
        before=(repository.load("e_counted"), ask, ask),
        call=case.get("/v2/models/e_counted/stats"),
        after=(repository.unload("e_counted", unload_dependents=True),),
        masked=_TIMES,
        settles=b'"execution_count":2',
    )


def _sequences() -> Iterator[Case]:
    """Each step is of the sequence that the request is of."""
    before, after = (repository.load("e_sequence"),), (repository.unload("e_sequence", unload_dependents=True),)
    given = tensor("IN", "FP32", [1, 1], [5.0])
    start, more, end = (
        tensors.ask("e_sequence", body([given], parameters={"sequence_id": 7, **flags}))
        for flags in ({"sequence_start": True}, {}, {"sequence_end": True})
    )
    lone = tensors.ask("e_sequence", body([given]))
    calls = (
        ("whole", "a sequence through a step", (start, more), end),
        ("none", "no sequence, but a step needs one", (), lone),
    )
    for name, row, asked, call in calls:
        yield Case(
            id=f"http/sequence-{name}", section=_SECTION, row=row, before=(*before, *asked), call=call, after=after
        )
    wire = [Raw("IN", "FP32", [1, 1], tensors.wire("FP32", [5.0]))]
    named = tensors.infer("e_sequence", wire, parameters={"sequence_id": "mine", "sequence_start": True})
    yield Case(
        id="grpc/sequence-string",
        section=_SECTION,
        row="a sequence through a step",
        before=before,
        call=named,
        after=after,
    )


def _refused() -> Iterator[Case]:
    wrong: tuple[tuple[str, str, object], ...] = (
        ("unknown-input", "an unknown input", body([tensor("NO", "FP32", [1, 4], _ROW)])),
        ("datatype", "a wrong datatype", body([tensor("IN", "INT32", [1, 4], [1, 2, 3, 4])])),
        ("no-input", "no input", body([])),
        ("unknown-output", "an unknown output", body([_IN], [output("NO")])),
        ("batch", "a batch that is too large", body([tensor("IN", "FP32", [5, 4], _ROW * 5)])),
    )
    for name, row, told in wrong:
        yield _case(f"http/{name}", row, "e_fork", tensors.ask("e_fork", told))
    picky = tensor("IN", "INT64", [1, 1], [7])
    yield _case(
        "http/step-fails",
        "a step that fails",
        "e_picky",
        tensors.ask("e_picky", body([picky], id="x")),
        text=Text.FREE,
    )


def _shapes() -> Iterator[Case]:
    one = body([tensor("IN", "FP32", [4], _ROW)])
    yield _case(
        "http/single", "a model that batches, in an ensemble that does not", "e_single", tensors.ask("e_single", one)
    )
    for rows in (2, 9):
        given = body([tensor("IN", "FP32", [rows, 4], _ROW * rows)])
        yield _case(
            f"http/rows-{rows}", f"{rows} rows for a model that takes 8", "e_rows", tensors.ask("e_rows", given)
        )
    more = tensor("MORE", "FP32", [1], [3.0])
    for name, row, told in (
        ("given", "an optional input that is given", body([_TWO, more])),
        ("left-out", "an optional input that is left out, but a step needs it", body([_TWO])),
        (
            "not-needed",
            "an optional input that is left out, and no asked output needs it",
            body([_TWO], [output("OUT")]),
        ),
    ):
        yield _case(f"http/optional-{name}", row, "e_optional", tensors.ask("e_optional", told))


def _life() -> Iterator[Case]:
    ask = tensors.ask("e_life", body([_TWO]))
    gone = repository.unload("e_life", unload_dependents=True)
    ready = case.get("/v2/models/idle/ready")
    yield Case(
        id="http/loads",
        section=_SECTION,
        row="a load, of what it is composed of",
        before=(repository.load("e_life"),),
        call=ready,
        after=(gone,),
    )
    for name, dependents in (("with", True), ("without", False)):
        yield Case(
            id=f"http/unload-{name}",
            section=_SECTION,
            row=f"the model of a step, after an unload {name} unload_dependents",
            before=(repository.load("e_life"), repository.unload("e_life", unload_dependents=dependents)),
            call=ready,
            settles=b"not ready" if dependents else b"",
            after=(repository.unload("idle"),),
        )
    yield Case(
        id="http/step-unloaded",
        section=_SECTION,
        row="an ensemble after the unload of a step's model",
        before=(repository.load("e_life"), repository.unload("idle")),
        call=ask,
        settles=b"no available",
        after=(gone,),
    )
    yield Case(
        id="http/step-loaded",
        section=_SECTION,
        row="an ensemble after the unload and a load of a step's model",
        before=(repository.load("e_life"), repository.unload("idle"), repository.load("idle")),
        call=ask,
        after=(repository.unload("e_life"), repository.unload("idle")),
    )


def _failing() -> Iterator[Case]:
    faults = {
        "e_nowhere": "a load with a step's model that is in no repository",
        "e_broken": "a load with a step's model that cannot be loaded",
        "e_seven": "a load with a step's version that is not served",
        "e_self": "a load of an ensemble of itself",
        "e_type": "a load where datatypes differ",
        "e_shape": "a load where shapes differ",
        "e_batch": "a load where a step's model takes smaller batches",
        "e_input": "a load with an input that a step's model has not",
        "e_output": "a load with an output that a step's model has not",
        "e_unmapped": "a load without an input that a step's model needs",
        "e_twice": "a load where two steps make one tensor",
        "e_unwritten": "a load where no step makes an output",
        "e_unused_input": "a load with an input that no step takes",
        "e_unused_tensor": "a load with a tensor that nobody takes",
        "e_circle": "a load where steps wait for each other",
        "e_no_step": "a load without steps",
        "e_instances": "a load with instances",
    }
    for model, row in faults.items():
        yield Case(
            id=f"http/{model}",
            section=_SECTION,
            row=row,
            call=repository.load(model),
            after=(repository.unload(model), *((repository.unload("broken"),) if model == "e_broken" else ())),
            text=Text.FREE,
        )

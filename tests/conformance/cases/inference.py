"""Inference in both transports: datatypes, versions, outputs, ids, parameters; sections 2.1 to 2.5 and 3 of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.conformance import case, tensors
from tests.conformance.case import Case, Text
from tests.conformance.tensors import ONE, RAW_ONE, Raw, Typed, body, output, tensor

_TYPES = "Datatypes"
_SHAPE = "Shapes and counts"
_OUTPUTS = "Outputs"
_PARAMETERS = "Parameters"
_VERSIONS = "Versions and ids"


def cases() -> Iterator[Case]:
    for datatype in tensors.SAMPLES:
        yield from case.named(f"datatype/{datatype.lower()}", [*_http_type(datatype), *_grpc_type(datatype)])
    yield from case.named("shape", list(_shapes()))
    yield from case.named("outputs", list(_outputs()))
    yield from case.named("versions", list(_versions()))
    yield from case.named("parameters", list(_parameters()))


def _http_type(datatype: str) -> Iterator[Case]:
    model, values = f"id_{datatype.lower()}", tensors.SAMPLES[datatype]
    data, shape = tensors.wire(datatype, values), [len(values)]
    forms: list[tuple[str, dict[str, Any], bytes]] = [
        ("binary", tensor("INPUT", datatype, shape, binary_data_size=len(data)), data)
    ]
    if datatype in tensors.FIELDS:
        forms.append(("json", tensor("INPUT", datatype, shape, tensors.plain(datatype, values)), b""))
    for form, given, binary in forms:
        yield Case(
            id=f"http/{form}-binary",
            section=_TYPES,
            row=f"{datatype}: {form} in, binary out",
            call=tensors.ask(model, body([given], [output("OUTPUT", binary_data=True)]), binary),
        )
        yield Case(
            id=f"http/{form}-json",
            section=_TYPES,
            row=f"{datatype}: {form} in, JSON out",
            call=tensors.ask(model, body([given]), binary),
        )
    if datatype not in tensors.FIELDS:
        yield Case(
            id="http/json",
            section=_TYPES,
            row=f"{datatype}: JSON in",
            call=tensors.ask(model, body([tensor("INPUT", datatype, [1], [1.0])])),
        )
    yield Case(
        id="http/empty",
        section=_TYPES,
        row=f"{datatype}: no elements",
        call=tensors.ask(model, body([tensor("INPUT", datatype, [0], binary_data_size=0)], binary_data_output=True)),
    )


def _grpc_type(datatype: str) -> Iterator[Case]:
    model = f"id_{datatype.lower()}"
    raw = tensors.sample(datatype)
    yield Case(id="grpc/raw", section=_TYPES, row=f"{datatype}: raw_input_contents", call=tensors.infer(model, [raw]))
    if datatype in tensors.FIELDS:
        yield Case(
            id="grpc/contents",
            section=_TYPES,
            row=f"{datatype}: contents",
            call=tensors.infer(model, [tensors.sample(datatype, raw=False)]),
        )
    else:
        yield Case(
            id="grpc/contents",
            section=_TYPES,
            row=f"{datatype}: contents",
            call=tensors.infer(model, [Typed("INPUT", datatype, [1], [1.0], "fp32_contents")]),
        )
    yield Case(
        id="grpc/empty",
        section=_TYPES,
        row=f"{datatype}: no elements",
        call=tensors.infer(model, [Raw("INPUT", datatype, [0], b"")]),
    )
    other = "INT32" if datatype != "INT32" else "FP32"
    given = Raw("INPUT", other, [1], b"\0\0\0\0")
    yield Case(
        id="grpc/other",
        section=_TYPES,
        row="another datatype than the model's",
        call=tensors.infer(model, [given]),
    )
    yield Case(
        id="http/other",
        section=_TYPES,
        row="another datatype than the model's",
        call=tensors.ask(model, body([tensor("INPUT", other, [1], [0])])),
    )


def _both(
    name: str,
    row: str,
    model: str,
    inputs: list[tuple[str, str, list[int], list[Any]]],
    section: str = _SHAPE,
    **more: Any,
) -> Iterator[Case]:
    """The same inputs as JSON, as binary data and as raw contents."""
    told = [tensor(each, datatype, shape, values) for each, datatype, shape, values in inputs]
    yield Case(id=f"http/{name}", section=section, row=row, call=tensors.ask(model, body(told)), **more)
    sized = [
        (tensor(each, datatype, shape, binary_data_size=len(data)), data)
        for each, datatype, shape, values in inputs
        for data in [tensors.wire(datatype, values)]
    ]
    call = tensors.ask(model, body([each for each, _ in sized]), b"".join(data for _, data in sized))
    yield Case(id=f"http/{name}-binary", section=section, row=row, call=call, **more)
    raw = [Raw(each, datatype, shape, tensors.wire(datatype, values)) for each, datatype, shape, values in inputs]
    yield Case(id=f"grpc/{name}", section=section, row=row, call=tensors.infer(model, raw), **more)


def _shapes() -> Iterator[Case]:
    four = [1.0, 2.0, 3.0, 4.0]
    good: tuple[tuple[str, str, str, list[tuple[str, str, list[int], list[Any]]]], ...] = (
        ("batch", "batches", "batched", [("INPUT", "FP32", [2, 4], four * 2)]),
        ("largest-batch", "batches", "batched", [("INPUT", "FP32", [8, 4], four * 8)]),
        ("matrix", "two variable dimensions", "matrix", [("INPUT", "FP32", [2, 2], four)]),
        ("zero-dimension", "a dimension of zero", "matrix", [("INPUT", "FP32", [3, 0], [])]),
        ("fixed", "fixed dimensions", "fixed", [("INPUT", "FP32", [2, 3], [*four, 5.0, 6.0])]),
        ("two", "two inputs", "add_sub", [(f"INPUT{i}", "FP32", [1, 4], four) for i in (0, 1)]),
        ("two-reversed", "inputs in another order", "add_sub", [(f"INPUT{i}", "FP32", [1, 4], four) for i in (1, 0)]),
        ("two-unbatched", "two inputs", "add_sub_int", [(f"INPUT{i}", "INT32", [2], [5, 7]) for i in (0, 1)]),
    )
    for name, row, model, inputs in good:
        yield from _both(name, row, model, inputs)
    bad: tuple[tuple[str, str, str, list[tuple[str, str, list[int], list[Any]]]], ...] = (
        (
            "batch-too-large",
            "batch above max_batch_size",
            "batched",
            [("INPUT", "FP32", [9, 4], four * 9)],
        ),
        (
            "batch-missing",
            "batch dimension missing",
            "batched",
            [("INPUT", "FP32", [4], four)],
        ),
        (
            "batch-zero",
            "batch of zero",
            "batched",
            [("INPUT", "FP32", [0, 4], [])],
        ),
        (
            "wrong-dimension",
            "wrong dimension",
            "fixed",
            [("INPUT", "FP32", [2, 2], four)],
        ),
        (
            "wrong-rank",
            "wrong number of dimensions",
            "id_fp32",
            [("INPUT", "FP32", [2, 2], four)],
        ),
        (
            "batches-differ",
            "inputs with different batches",
            "add_sub",
            [("INPUT0", "FP32", [1, 4], four), ("INPUT1", "FP32", [2, 4], four * 2)],
        ),
        (
            "input-missing",
            "an input missing",
            "add_sub",
            [("INPUT0", "FP32", [1, 4], four)],
        ),
        (
            "input-beyond",
            "an input too many",
            "id_fp32",
            [("INPUT", "FP32", [1], [1.0]), ("OTHER", "FP32", [1], [1.0])],
        ),
        (
            "input-unknown",
            "unknown input",
            "id_fp32",
            [("OTHER", "FP32", [1], [1.0])],
        ),
        (
            "input-unknown-of-two",
            "unknown input",
            "add_sub",
            [("INPUT0", "FP32", [1, 4], four), ("OTHER", "FP32", [1, 4], four)],
        ),
        ("no-inputs", "no inputs", "id_fp32", []),
        ("input-twice", "an input given twice", "id_fp32", [("INPUT", "FP32", [1], [1.0])] * 2),
    )
    for name, row, model, inputs in bad:
        yield from _both(name, row, model, inputs)
    yield Case(
        id="http/datatype-unknown",
        section=_SHAPE,
        row="unknown datatype",
        call=tensors.ask("id_fp32", body([tensor("INPUT", "FP31", [1], [1.0])])),
    )
    yield Case(
        id="grpc/datatype-unknown",
        section=_SHAPE,
        row="unknown datatype",
        call=tensors.infer("id_fp32", [Raw("INPUT", "FP31", [1], b"\0\0\0\0")]),
    )
    for name, shape in (("negative", [-1]), ("huge", [2**62]), ("overflow", [2**40, 2**40])):
        model = "id_fp32" if len(shape) == 1 else "matrix"
        yield Case(
            id=f"grpc/shape-{name}",
            section=_SHAPE,
            row=f"shape: {name}",
            call=tensors.infer(model, [Raw("INPUT", "FP32", shape, b"\0\0\0\0")]),
        )
        yield Case(
            id=f"http/shape-{name}",
            section=_SHAPE,
            row=f"shape: {name}",
            call=tensors.ask(model, body([tensor("INPUT", "FP32", shape, binary_data_size=4)]), b"\0\0\0\0"),
        )


def _outputs() -> Iterator[Case]:
    four = [1.0, 2.0, 3.0, 4.0]
    told = [tensor(f"INPUT{i}", "FP32", [1, 4], four) for i in (0, 1)]
    raw = [Raw(f"INPUT{i}", "FP32", [1, 4], tensors.wire("FP32", four)) for i in (0, 1)]
    wishes: tuple[tuple[str, str, list[str]], ...] = (
        ("all", "all outputs where none is asked for", []),
        ("one", "one of two outputs", ["OUTPUT1"]),
        ("reversed", "outputs in another order", ["OUTPUT1", "OUTPUT0"]),
    )
    for name, row, names in wishes:
        call = tensors.ask("add_sub", body(told, [output(each) for each in names]))
        yield Case(id=f"http/{name}", section=_OUTPUTS, row=row, call=call)
        yield Case(id=f"grpc/{name}", section=_OUTPUTS, row=row, call=tensors.infer("add_sub", raw, names))
    yield Case(
        id="http/unknown",
        section=_OUTPUTS,
        row="unknown output",
        call=tensors.ask("id_fp32", body([ONE], [output("OTHER")])),
    )
    yield Case(
        id="grpc/unknown",
        section=_OUTPUTS,
        row="unknown output",
        call=tensors.infer("id_fp32", [RAW_ONE], ["OTHER"]),
    )
    yield Case(
        id="http/twice",
        section=_OUTPUTS,
        row="an output asked for twice",
        call=tensors.ask("id_fp32", body([ONE], [output("OUTPUT")] * 2)),
    )
    yield Case(
        id="grpc/twice",
        section=_OUTPUTS,
        row="an output asked for twice",
        call=tensors.infer("id_fp32", [RAW_ONE], ["OUTPUT"] * 2),
    )
    mixed = (
        ("mixed", "binary and JSON outputs in one answer", [True, False], None),
        ("request-wide", "binary_data_output of the request", [None, None], True),
        ("over-request", "binary_data of an output over the request's", [False, None], True),
        ("all-json", "binary_data false", [False, False], None),
    )
    for name, row, binary, whole in mixed:
        wanted = [
            output(f"OUTPUT{i}", **({} if wish is None else {"binary_data": wish})) for i, wish in enumerate(binary)
        ]
        more = {} if whole is None else {"parameters": {"binary_data_output": whole}}
        yield Case(
            id=f"http/{name}", section=_OUTPUTS, row=row, call=tensors.ask("add_sub", body(told, wanted, **more))
        )
    yield Case(
        id="http/binary-not-boolean",
        section=_OUTPUTS,
        row="binary_data that is no boolean",
        call=tensors.ask("id_fp32", body([ONE], [output("OUTPUT", binary_data=1)])),
    )
    failing = Raw("INPUT", "INT64", [1, 1], tensors.wire("INT64", [9]))
    yield Case(
        id="grpc/model-fails",
        section=_OUTPUTS,
        row="a model that raises",
        call=tensors.infer("picky", [failing]),
        text=Text.FREE,
    )
    yield Case(
        id="http/model-fails",
        section=_OUTPUTS,
        row="a model that raises",
        call=tensors.ask("picky", body([tensor("INPUT", "INT64", [1, 1], [9])])),
        text=Text.FREE,
    )


def _versions() -> Iterator[Case]:
    good = (
        ("highest", "highest version where none is given", "versioned", ""),
        ("given", "a given version", "versioned", "1"),
        ("latest", "the latest version of the default policy", "latest", ""),
    )
    for name, row, model, version in good:
        yield Case(
            id=f"http/{name}",
            section=_VERSIONS,
            row=row,
            call=tensors.ask(model, body([ONE]), version=version),
        )
        yield Case(id=f"grpc/{name}", section=_VERSIONS, row=row, call=tensors.infer(model, [RAW_ONE], version=version))
    bad = (
        ("unknown-model", "unknown model", "absent", ""),
        (
            "unknown-version",
            "unknown version",
            "versioned",
            "9",
        ),
        (
            "not-served",
            "a version that the policy leaves out",
            "versioned",
            "7",
        ),
        ("not-loaded", "a model that is not loaded", "untouched", ""),
    )
    for name, row, model, version in bad:
        yield Case(
            id=f"http/{name}",
            section=_VERSIONS,
            row=row,
            call=tensors.ask(model, body([ONE]), version=version),
        )
        yield Case(
            id=f"grpc/{name}",
            section=_VERSIONS,
            row=row,
            call=tensors.infer(model, [RAW_ONE], version=version),
        )
    yield Case(
        id="grpc/not-decimal",
        section=_VERSIONS,
        row="a version that is not decimal",
        call=tensors.infer("versioned", [RAW_ONE], version="one"),
    )
    yield Case(id="http/id", section=_VERSIONS, row="request id", call=tensors.ask("id_fp32", body([ONE], id="a7")))
    yield Case(
        id="grpc/id", section=_VERSIONS, row="request id", call=tensors.infer("id_fp32", [RAW_ONE], request_id="a7")
    )
    yield Case(
        id="http/id-in-error",
        section=_VERSIONS,
        row="request id before an error",
        call=tensors.ask("id_fp32", body([ONE], [output("OTHER")], id="a7")),
    )
    yield Case(
        id="grpc/id-in-error",
        section=_VERSIONS,
        row="request id before an error",
        call=tensors.infer("id_fp32", [RAW_ONE], ["OTHER"], request_id="a7"),
    )
    yield Case(
        id="http/id-not-string",
        section=_VERSIONS,
        row="request id that is no string",
        call=tensors.ask("id_fp32", body([ONE], id=7)),
    )


def _parameters() -> Iterator[Case]:
    good: tuple[tuple[str, Any], ...] = (
        ("boolean", True),
        ("integer", 7),
        ("string", "seven"),
    )
    for name, value in good:
        yield from _parameter(f"own-{name}", f"a parameter of its own: {name}", {"mine": value})
    yield from _parameter("double", "a parameter of its own: number with a point", {"mine": 0.5})
    yield from _parameter("priority", "priority", {"priority": 1})
    yield from _parameter("timeout", "timeout", {"timeout": 60_000_000})
    yield from _parameter(
        "sequence", "sequence_id on a model without sequences", {"sequence_id": 7, "sequence_start": True}
    )
    yield from _parameter("sequence-string", "sequence_id on a model without sequences", {"sequence_id": "seven"})
    bad: tuple[tuple[str, Any], ...] = (
        ("sequence_id", True),
        ("sequence_start", 1),
        ("sequence_end", "yes"),
        ("priority", "high"),
        ("timeout", "long"),
        ("priority", -1),
        ("timeout", True),
    )
    for number, (name, value) in enumerate(bad):
        yield from _parameter(f"wrong-{name}-{number}", f"{name} of a wrong type", {name: value})
    yield from _parameter("reserved", "a key that starts with triton_", {"triton_mine": 1})
    for name, value in (("object", {"a": 1}), ("array", [1]), ("null", None)):
        yield Case(
            id=f"http/{name}",
            section=_PARAMETERS,
            row=f"a parameter that is a JSON {name}",
            call=tensors.ask("id_fp32", body([ONE], parameters={"mine": value})),
        )
    yield Case(
        id="http/not-object",
        section=_PARAMETERS,
        row="parameters that are no object",
        call=tensors.ask("id_fp32", body([ONE], parameters=[1])),
    )
    yield Case(
        id="http/binary-output-not-boolean",
        section=_PARAMETERS,
        row="binary_data_output that is no boolean",
        call=tensors.ask("id_fp32", body([ONE], parameters={"binary_data_output": 1})),
    )
    empty = tensors.request("id_fp32", [RAW_ONE])
    empty.parameters["mine"].Clear()
    yield Case(
        id="grpc/no-value",
        section=_PARAMETERS,
        row="a parameter without a value",
        call=case.rpc("ModelInfer", empty),
    )
    yield Case(
        id="grpc/priority-unsigned",
        section=_PARAMETERS,
        row="priority as uint64",
        call=tensors.infer("id_fp32", [RAW_ONE], parameters={"priority": ("uint64_param", 1)}),
    )
    yield Case(
        id="grpc/sequence-unsigned",
        section=_PARAMETERS,
        row="sequence_id as uint64",
        call=tensors.infer("id_fp32", [RAW_ONE], parameters={"sequence_id": ("uint64_param", 7)}),
    )


def _parameter(name: str, row: str, given: dict[str, Any]) -> Iterator[Case]:
    yield Case(
        id=f"http/{name}",
        section=_PARAMETERS,
        row=row,
        call=tensors.ask("id_fp32", body([ONE], parameters=given)),
    )
    yield Case(
        id=f"grpc/{name}",
        section=_PARAMETERS,
        row=row,
        call=tensors.infer("id_fp32", [RAW_ONE], parameters=given),
    )

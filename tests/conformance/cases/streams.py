"""What is gRPC's own: contents beside raw contents, streams, decoupled models, cancellation; section 3.3 of the contract.

Sequences and ensembles are here too, since they are asked in streams as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protos.inference.v2 import predict_pb2 as pb
from tests.conformance import case, tensors
from tests.conformance.case import Case, Text
from tests.conformance.cases import repository
from tests.conformance.tensors import ONE, RAW_ONE, Raw, Typed, body, tensor

_RULES = "gRPC messages"
_STREAM = "Streams"
_DECOUPLED = "Decoupled models"
_SEQUENCE = "Sequences and ensembles"
_BACKEND = frozenset(("platform", "backend", "default_model_filename"))
_GIVEN_UP = "Cancellation and deadlines"


def cases() -> Iterator[Case]:
    yield from case.named("message", list(_messages()))
    yield from case.named("stream", list(_streams()))
    yield from case.named("decoupled", list(_decoupled()))
    yield from case.named("sequence", [*_sequences(), *_candidates()])
    yield from case.named("ensemble", list(_ensembles()))
    yield from case.named("cancel", list(_given_up()))


def _messages() -> Iterator[Case]:
    both = tensors.request("id_fp32", [RAW_ONE])
    both.inputs[0].contents.fp32_contents.append(1.0)
    yield Case(
        id="grpc/both", section=_RULES, row="contents beside raw_input_contents", call=case.rpc("ModelInfer", both)
    )
    one = [Raw("INPUT0", "FP32", [1, 4], b"\0" * 16), Typed("INPUT1", "FP32", [1, 4], [1.0] * 4)]
    yield Case(
        id="grpc/one-of-each",
        section=_RULES,
        row="one input in contents, another in raw_input_contents",
        call=tensors.infer("add_sub", one),
    )
    more = tensors.request("id_fp32", [RAW_ONE])
    more.raw_input_contents.append(b"\0\0\0\0")
    yield Case(
        id="grpc/raw-beyond",
        section=_RULES,
        row="more raw_input_contents than inputs",
        call=case.rpc("ModelInfer", more),
    )
    fewer = tensors.request("add_sub", [Raw(f"INPUT{i}", "FP32", [1, 4], b"\0" * 16) for i in (0, 1)])
    del fewer.raw_input_contents[1]
    yield Case(
        id="grpc/raw-missing",
        section=_RULES,
        row="fewer raw_input_contents than inputs",
        call=case.rpc("ModelInfer", fewer),
    )
    none = tensors.request("id_fp32", [RAW_ONE])
    del none.raw_input_contents[:]
    yield Case(id="grpc/no-data", section=_RULES, row="an input without data", call=case.rpc("ModelInfer", none))
    for datatype, field, value in (
        ("FP32", "int_contents", 1),
        ("INT32", "int64_contents", 1),
        ("INT64", "int_contents", 1),
        ("UINT8", "int_contents", 1),
        ("FP64", "fp32_contents", 1.0),
        ("BYTES", "bool_contents", True),
        ("BOOL", "int_contents", 1),
    ):
        yield Case(
            id=f"grpc/field-{datatype.lower()}",
            section=_RULES,
            row="contents in the field of another datatype",
            call=tensors.infer(f"id_{datatype.lower()}", [Typed("INPUT", datatype, [1], [value], field)]),
        )
    for name, values in (("few", [1.0]), ("many", [1.0, 2.0, 3.0])):
        yield Case(
            id=f"grpc/contents-too-{name}",
            section=_RULES,
            row=f"too {name} contents",
            call=tensors.infer("id_fp32", [Typed("INPUT", "FP32", [2], values)]),
        )
    for datatype, value in (("INT8", 128), ("INT16", -40000), ("UINT8", 256), ("UINT16", 2**16)):
        yield Case(
            id=f"grpc/range-{datatype.lower()}",
            section=_RULES,
            row="contents that the datatype cannot hold",
            call=tensors.infer(f"id_{datatype.lower()}", [Typed("INPUT", datatype, [1], [value])]),
        )
    yield Case(
        id="grpc/empty-message",
        section=_RULES,
        row="an empty message",
        call=case.rpc("ModelInfer", b""),
    )
    yield Case(
        id="grpc/unknown-field",
        section=_RULES,
        row="unknown fields",
        call=case.rpc("ModelInfer", tensors.request("id_fp32", [RAW_ONE]).SerializeToString() + b"\xa2\x06\x01x"),
    )
    yield Case(
        id="grpc/response-compressed",
        section=_RULES,
        row="answers compressed as the flag says",
        call=tensors.infer("id_fp32", [Raw("INPUT", "FP32", [256], b"\0" * 1024)]),
        setup="compressing",
    )
    for transport, call in (
        ("http", tensors.ask("id_fp32", body([ONE]), headers={"mine-header": "a", "other": "b"})),
        ("grpc", case.rpc("ModelInfer", tensors.request("id_fp32", [RAW_ONE]), metadata=(("mine-key", "a"),))),
    ):
        yield Case(
            id=f"{transport}/forwarded",
            section="Parameters",
            row="headers forwarded as parameters",
            call=call,
            setup="forwarding",
        )


def _stream(*messages: pb.ModelInferRequest, metadata: tuple[tuple[str, str], ...] = ()) -> case.Rpc:
    return case.rpc("ModelStreamInfer", *messages, metadata=metadata)


def _streams() -> Iterator[Case]:
    good = [tensors.request("id_fp32", [RAW_ONE], request_id=str(number)) for number in range(5)]
    bad = tensors.request("absent", [RAW_ONE], request_id="bad")
    wrong = tensors.request("id_fp32", [Raw("OTHER", "FP32", [1], b"\0\0\0\0")], request_id="wrong")
    samples: tuple[tuple[str, str, list[pb.ModelInferRequest]], ...] = (
        ("none", "a stream without requests", []),
        ("one", "a stream of one request", good[:1]),
        ("several", "a stream of several requests", good),
        ("unknown-model", "a request for an unknown model", [bad]),
        ("wrong-input", "a request with a wrong input", [wrong]),
        ("after-error", "requests after one that failed", [good[0], bad, good[1]]),
        ("no-id", "a request without an id", [tensors.request("id_fp32", [RAW_ONE])]),
    )
    for name, row, messages in samples:
        yield Case(id=f"grpc/{name}", section=_STREAM, row=row, call=_stream(*messages))
    for value in ("true", "false"):
        yield Case(
            id=f"grpc/real-status-{value}",
            section=_STREAM,
            row=f"metadata triton_grpc_error: {value}",
            call=_stream(bad, metadata=(("triton_grpc_error", value),)),
        )
    yield Case(
        id="grpc/real-status-good",
        section=_STREAM,
        row="metadata triton_grpc_error where nothing fails",
        call=_stream(*good[:2], metadata=(("triton_grpc_error", "true"),)),
    )
    final = tensors.request(
        "id_fp32", [RAW_ONE], request_id="f", parameters={"triton_enable_empty_final_response": True}
    )
    yield Case(
        id="grpc/empty-final",
        section=_STREAM,
        row="triton_enable_empty_final_response on a model that is not decoupled",
        call=_stream(final),
    )
    wrong_final = tensors.request("id_fp32", [RAW_ONE], parameters={"triton_enable_empty_final_response": 1})
    yield Case(
        id="grpc/empty-final-wrong",
        section=_STREAM,
        row="triton_enable_empty_final_response of a wrong type",
        call=_stream(wrong_final),
    )
    yield Case(
        id="grpc/unreadable",
        section=_STREAM,
        row="a message that is none",
        call=case.rpc("ModelStreamInfer", b"\xff\xff\xff"),
        text=Text.FREE,
    )
    failing = tensors.request("picky", [Raw("INPUT", "INT64", [1, 1], tensors.wire("INT64", [9]))], request_id="p")
    yield Case(
        id="grpc/model-fails",
        section=_STREAM,
        row="a model that raises",
        call=_stream(failing),
        text=Text.FREE,
        masked=frozenset(("error_message",)),
    )
    classes = tensors.request(
        "classes", [Raw("INPUT", "FP32", [1, 8], tensors.wire("FP32", list(range(8))))], ["OUTPUT"]
    )
    classes.outputs[0].parameters["classification"].int64_param = 2
    yield Case(id="grpc/classification", section=_STREAM, row="classification in a stream", call=_stream(classes))


def _decoupled() -> Iterator[Case]:
    before, after = (repository.load("decoupled"),), (repository.unload("decoupled"),)
    values = [5, 6, 7]
    given = Raw("INPUT", "INT32", [3], tensors.wire("INT32", values))
    none = Raw("INPUT", "INT32", [0], b"")
    final = {"triton_enable_empty_final_response": True}
    samples = (
        ("several", "several answers to one request", tensors.request("decoupled", [given], request_id="d")),
        ("none", "no answer to a request", tensors.request("decoupled", [none], request_id="d")),
        (
            "empty-final",
            "an empty final answer where it is asked for",
            tensors.request("decoupled", [given], request_id="d", parameters=final),
        ),
        (
            "only-final",
            "only the empty final answer",
            tensors.request("decoupled", [none], request_id="d", parameters=final),
        ),
    )
    for name, row, message in samples:
        yield Case(id=f"grpc/{name}", section=_DECOUPLED, row=row, before=before, call=_stream(message), after=after)
    yield Case(
        id="grpc/unary",
        section=_DECOUPLED,
        row="a decoupled model asked by ModelInfer, or infer",
        before=before,
        call=tensors.infer("decoupled", [given]),
        after=after,
    )
    yield Case(
        id="http/unary",
        section=_DECOUPLED,
        row="a decoupled model asked by ModelInfer, or infer",
        before=before,
        call=tensors.ask("decoupled", body([tensor("INPUT", "INT32", [3], values)])),
        after=after,
    )


def _sequences() -> Iterator[Case]:
    before, after = (repository.load("sequence"),), (repository.unload("sequence"),)
    one = Raw("INPUT", "FP32", [1, 1], tensors.wire("FP32", [5.0]))
    told = tensor("INPUT", "FP32", [1, 1], [5.0])
    two = Raw("INPUT", "FP32", [2, 1], tensors.wire("FP32", [5.0, 6.0]))
    samples: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("start", "the first request of a sequence", {"sequence_id": 7, "sequence_start": True, "sequence_end": True}),
        ("string", "a sequence named by a string", {"sequence_id": "s", "sequence_start": True, "sequence_end": True}),
        ("no-start", "a sequence without its start", {"sequence_id": 8}),
        ("no-id", "a request without a sequence", {}),
        ("zero", "sequence_id 0", {"sequence_id": 0, "sequence_start": True}),
    )
    for name, row, parameters in samples:
        yield Case(
            id=f"grpc/{name}",
            section=_SEQUENCE,
            row=row,
            before=before,
            call=tensors.infer("sequence", [one], parameters=parameters),
            after=after,
        )
        yield Case(
            id=f"http/{name}",
            section=_SEQUENCE,
            row=row,
            before=before,
            call=tensors.ask("sequence", body([told], parameters=parameters)),
            after=after,
        )
    yield Case(
        id="grpc/batch",
        section=_SEQUENCE,
        row="a batch in a sequence",
        before=before,
        call=tensors.infer("sequence", [two], parameters={"sequence_id": 9, "sequence_start": True}),
        after=after,
    )
    flags: tuple[dict[str, bool], ...] = ({"sequence_start": True}, {}, {"sequence_end": True})
    messages = [tensors.request("sequence", [one], parameters={"sequence_id": 3, **each}) for each in flags]
    yield Case(
        id="grpc/whole",
        section=_SEQUENCE,
        row="a whole sequence in a stream",
        before=before,
        call=_stream(*messages),
        after=after,
    )


def _candidates() -> Iterator[Case]:
    """What a model is told of its sequences, and who waits for whom where there is room for one."""
    before, after = (repository.load("candidates"),), (repository.unload("candidates"),)
    one = Raw("INPUT", "FP32", [1, 1], tensors.wire("FP32", [5.0]))
    start, end, both = {"sequence_start": True}, {"sequence_end": True}, {"sequence_start": True, "sequence_end": True}
    asked: tuple[tuple[str, str, list[tuple[int | str, dict[str, Any]]]], ...] = (
        ("told", "what a model is told of a sequence", [(2**63 - 1, start), (2**63 - 1, {}), (2**63 - 1, end)]),
        ("backlog", "a sequence that waits for another", [(1, start), (2, both), (1, {}), (1, end)]),
        ("again", "a sequence begun anew before its end", [(1, start), (1, {}), (1, start), (1, end)]),
        ("ended", "a sequence that goes on after its end", [(1, both), (1, {})]),
        ("waiting", "a sequence that waits for a slot for too long", [(1, start), (2, {**start, "timeout": 1000})]),
    )
    for name, row, requests in asked:
        messages = [
            tensors.request("candidates", [one], request_id=f"r{index}", parameters={"sequence_id": of, **parameters})
            for index, (of, parameters) in enumerate(requests)
        ]
        yield Case(id=f"grpc/{name}", section=_SEQUENCE, row=row, before=before, call=_stream(*messages), after=after)
    long: tuple[tuple[str, str, str], ...] = (
        ("string-id", "a string where the model takes a number", "s"),
        ("longest-string", "a sequence named by 128 characters", "s" * 128),
        ("long-string", "a sequence named by 129 characters", "s" * 129),
    )
    for name, row, of in long:
        model = "candidates" if name == "string-id" else "sequence"
        yield Case(
            id=f"grpc/{name}",
            section=_SEQUENCE,
            row=row,
            before=(repository.load(model),),
            call=tensors.infer(model, [one], parameters={"sequence_id": of, **both}),
            after=(repository.unload(model),),
        )
    for model in ("sequence", "candidates"):
        yield Case(
            id=f"http/config-{model}",
            section=_SEQUENCE,
            row="configuration of a model of sequences",
            before=(repository.load(model),),
            call=case.get(f"/v2/models/{model}/config"),
            after=(repository.unload(model),),
            masked=_BACKEND,
        )


def _ensembles() -> Iterator[Case]:
    before, after = (repository.load("ensemble"),), (repository.unload("ensemble"),)
    yield Case(
        id="http/infer",
        section=_SEQUENCE,
        row="an ensemble",
        before=before,
        call=tensors.ask("ensemble", body([tensor("IN", "FP32", [2], [1.0, 2.0])])),
        after=after,
    )
    yield Case(
        id="grpc/infer",
        section=_SEQUENCE,
        row="an ensemble",
        before=before,
        call=tensors.infer("ensemble", [Raw("IN", "FP32", [2], tensors.wire("FP32", [1.0, 2.0]))]),
        after=after,
    )
    yield Case(
        id="http/config",
        section=_SEQUENCE,
        row="an ensemble's configuration",
        before=before,
        call=case.get("/v2/models/ensemble/config"),
        after=after,
    )


def _given_up() -> Iterator[Case]:
    slow = tensors.request("slow", [Raw("INPUT", "FP32", [1, 4], b"\0" * 16)])
    after = (tensors.infer("id_fp32", [RAW_ONE]),)
    yield Case(
        id="grpc/unary",
        section=_GIVEN_UP,
        row="a call that its client gives up",
        call=case.rpc("ModelInfer", slow, cancel=True),
        after=after,
        text=Text.FREE,
    )
    yield Case(
        id="grpc/stream",
        section=_GIVEN_UP,
        row="a stream that its client gives up",
        call=case.rpc("ModelStreamInfer", slow, cancel=True),
        after=after,
        text=Text.FREE,
    )
    yield Case(
        id="grpc/deadline",
        section=_GIVEN_UP,
        row="a call whose deadline ends first",
        call=case.rpc("ModelInfer", slow, timeout_s=0.05),
        after=after,
        text=Text.FREE,
    )

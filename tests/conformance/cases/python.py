"""Models in Python: the same code on both servers, and what it says, does and does wrong."""

from __future__ import annotations

from collections.abc import Iterator

from tests.conformance import case, tensors
from tests.conformance.case import Case
from tests.conformance.tensors import Raw, body, tensor

_PYTHON = "Models in Python"


def cases() -> Iterator[Case]:
    yield from case.named("python", list(_scripted()))


def _scripted() -> Iterator[Case]:
    kinds = ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS")
    codes = [(f"error-{kind.lower()}", f"TritonError.{kind}", [b"error", kind.encode()]) for kind in kinds]
    samples: list[tuple[str, str, list[bytes]]] = [
        ("echo", "strings that are no text", [b"echo", b"", b"\xff\x00", b"caf\xc3\xa9"]),
        ("number", "execute returns what is no response", [b"number"]),
        ("plain", "TritonError without a code", [b"plain"]),
        *codes,
        ("request", "what a request tells", [b"request"]),
        ("ask", "a request to another model", [b"ask", b"id_fp32", b"OUTPUT"]),
        ("ask-unknown", "a request to a model that is not there", [b"ask", b"nobody", b"OUTPUT"]),
        ("ask-output", "a request for an output that is not there", [b"ask", b"id_fp32", b"WHAT"]),
    ]
    for name, row, values in samples:
        data = tensors.wire("BYTES", values)
        given = Raw("INPUT", "BYTES", [len(values)], data)
        yield Case(id=f"grpc/{name}", section=_PYTHON, row=row, call=tensors.infer("scripted", [given], request_id="p"))
        given_too = tensor("INPUT", "BYTES", [len(values)], binary_data_size=len(data))
        told = body([given_too], id="p", parameters={"binary_data_output": True})
        yield Case(id=f"http/{name}", section=_PYTHON, row=row, call=tensors.ask("scripted", told, data))

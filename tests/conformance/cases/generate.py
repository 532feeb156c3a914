"""The generate extension: section 4.11 of the contract. HTTP has it alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.conformance import case
from tests.conformance.case import Case, Text
from tests.conformance.cases import repository

_SECTION = "Generate"


def cases() -> Iterator[Case]:
    yield from case.named("generate", [*_answers(), *_refusals(), *_decoupled()])


def _ask(model: str, told: object, *, stream: bool = False, version: str = "") -> case.Http:
    middle = f"/versions/{version}" if version else ""
    return case.post(f"/v2/models/{model}{middle}/generate{'_stream' if stream else ''}", told)


def _answers() -> Iterator[Case]:
    samples: tuple[tuple[str, str, str, object], ...] = (
        ("scalar", "a number becomes a tensor of one element", "id_fp32", {"INPUT": 1.5}),
        ("array", "an array becomes a tensor", "id_fp32", {"INPUT": [1.5, 2.5]}),
        ("integer", "integers", "id_int32", {"INPUT": [1, 2, 3]}),
        ("string", "a string becomes BYTES", "id_bytes", {"INPUT": "hello"}),
        ("strings", "strings", "id_bytes", {"INPUT": ["a", "b"]}),
        ("boolean", "a boolean", "id_bool", {"INPUT": True}),
        ("fixed", "an array in the model's fixed shape", "fixed", {"INPUT": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}),
        ("batched", "a model that batches", "batched", {"INPUT": [1.0, 2.0, 3.0, 4.0]}),
        ("text", "a model of shape [1]", "batched_text", {"INPUT": "hello"}),
        ("two", "two inputs", "add_sub_int", {"INPUT0": [5], "INPUT1": [3]}),
        ("id", "id", "id_fp32", {"INPUT": 1.0, "id": "a7"}),
        (
            "parameter",
            "other members are parameters",
            "id_fp32",
            {"INPUT": 1.0, "mine": 7, "other": "x", "third": True},
        ),
        ("parameters", "members of parameters", "id_fp32", {"INPUT": 1.0, "parameters": {"mine": 7}}),
        ("input-in-parameters", "an input among parameters", "id_fp32", {"parameters": {"INPUT": 1.0}}),
        ("null", "null among the members", "id_fp32", {"INPUT": 1.0, "mine": None}),
        ("double", "a parameter with a point", "id_fp32", {"INPUT": 1.0, "mine": 0.5}),
    )
    for name, row, model, told in samples:
        for suffix, stream in (("", False), ("-stream", True)):
            yield Case(
                id=f"http/{name}{suffix}",
                section=_SECTION,
                row=f"{row}{' (stream)' if stream else ''}",
                call=_ask(model, told, stream=stream),
            )
    yield Case(
        id="http/version",
        section=_SECTION,
        row="a version",
        call=_ask("versioned", {"INPUT": 2.0}, version="1"),
    )


def _refusals() -> Iterator[Case]:
    samples: tuple[tuple[str, str, str, object], ...] = (
        ("unknown-model", "an unknown model", "absent", {"INPUT": 1.0}),
        ("not-loaded", "a model that is not loaded", "untouched", {"INPUT": 1.0}),
        ("no-input", "an input missing", "id_fp32", {}),
        ("one-of-two", "an input missing", "add_sub_int", {"INPUT0": [5]}),
        ("wrong-type", "an input of a wrong type", "id_fp32", {"INPUT": "word"}),
        ("null-input", "an input that is null", "id_fp32", {"INPUT": None}),
        ("object-input", "an input that is an object", "id_fp32", {"INPUT": {"a": 1}}),
        ("mixed", "an array of several types", "id_fp32", {"INPUT": [1.0, "a"]}),
        ("nested", "an array of arrays", "matrix", {"INPUT": [[1.0, 2.0], [3.0, 4.0]]}),
        ("too-few", "fewer elements than the fixed shape", "fixed", {"INPUT": [1.0]}),
        ("halves", "FP16", "id_fp16", {"INPUT": 1.0}),
        ("object", "a parameter that is an object", "id_fp32", {"INPUT": 1.0, "mine": {"a": 1}}),
        ("array-parameter", "a parameter that is an array", "id_fp32", {"INPUT": 1.0, "mine": [1]}),
        ("reserved", "a key that starts with triton_", "id_fp32", {"INPUT": 1.0, "triton_mine": 1}),
        ("id-number", "id that is no string", "id_fp32", {"INPUT": 1.0, "id": 7}),
    )
    for name, row, model, told in samples:
        for suffix, stream in (("", False), ("-stream", True)):
            yield Case(
                id=f"http/{name}{suffix}",
                section=_SECTION,
                row=f"{row}{' (stream)' if stream else ''}",
                call=_ask(model, told, stream=stream),
            )
    for name, text in (("not-json", b"{not"), ("array", b"[1]"), ("empty", b"")):
        yield Case(
            id=f"http/body-{name}",
            section=_SECTION,
            row="a body that is no JSON object",
            call=_ask("id_fp32", text),
        )
    yield Case(
        id="http/version-unknown",
        section=_SECTION,
        row="an unknown version",
        call=_ask("versioned", {"INPUT": 2.0}, version="9"),
    )
    for suffix, stream in (("", False), ("-stream", True)):
        yield Case(
            id=f"http/model-fails{suffix}",
            section=_SECTION,
            row=f"a model that raises{' (stream)' if stream else ''}",
            call=_ask("picky", {"INPUT": 9}, stream=stream),
            text=Text.FREE,
        )
    yield Case(
        id="http/compressed",
        section=_SECTION,
        row="a compressed body",
        call=case.post("/v2/models/id_fp32/generate", b"x", {"Content-Encoding": "gzip"}),
    )


def _decoupled() -> Iterator[Case]:
    samples: tuple[tuple[str, str, dict[str, Any], bool], ...] = (
        ("several-stream", "several answers (stream)", {"INPUT": [5, 6]}, True),
        ("one-stream", "one answer (stream)", {"INPUT": [5]}, True),
        ("one", "one answer of a decoupled model", {"INPUT": [5]}, False),
        ("several", "several answers without a stream", {"INPUT": [5, 6]}, False),
    )
    for name, row, told, stream in samples:
        yield Case(
            id=f"http/decoupled-{name}",
            section=_SECTION,
            row=row,
            before=(repository.load("decoupled"),),
            call=_ask("decoupled", told, stream=stream),
            after=(repository.unload("decoupled"),),
        )

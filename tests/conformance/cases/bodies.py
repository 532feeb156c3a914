"""What is only HTTP's: JSON forms, binary tensor data, raw requests, compression; sections 2.1 to 2.6 of the contract."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from tests.conformance import case, tensors
from tests.conformance.case import Case, Text
from tests.conformance.tensors import ONE, body, output, tensor

_JSON = "JSON bodies"
_BINARY = "Binary tensor data"
_RAW = "Raw binary requests"
_COMPRESSION = "Compression"
_LENGTH = "Inference-Header-Content-Length"


def cases() -> Iterator[Case]:
    yield from case.named("json", [*_nesting(), *_elements(), *_malformed()])
    yield from case.named("binary", list(_binary()))
    yield from case.named("raw", list(_raw()))
    yield from case.named("compression", [*_requests(), *_responses()])


def _nesting() -> Iterator[Case]:
    good: tuple[tuple[str, str, list[int], Any], ...] = (
        ("flat", "data flat", [2, 2], [1, 2, 3, 4]),
        ("nested", "data nested to the shape", [2, 2], [[1, 2], [3, 4]]),
        ("empty", "data empty", [0, 2], []),
        ("partly-nested", "data nested to less than the shape", [2, 2], [[1, 2, 3, 4]]),
        ("otherwise-nested", "data nested to another shape", [2, 2], [[1], [2], [3], [4]]),
        ("deeper", "data nested deeper than the shape", [2, 2], [[[1], [2]], [[3], [4]]]),
        ("ragged", "data nested unevenly", [2, 2], [[1, 2, 3], [4]]),
        ("mixed", "numbers beside arrays", [2, 2], [1, [2, 3], 4]),
    )
    for name, row, shape, data in good:
        yield Case(
            id=f"http/{name}",
            section=_JSON,
            row=row,
            call=tensors.ask("matrix", body([tensor("INPUT", "FP32", shape, data)])),
        )
    for name, row, data in (
        ("too-few", "too few elements", [1, 2, 3]),
        ("too-many", "too many elements", [1, 2, 3, 4, 5]),
        ("none", "no elements for a shape that has some", []),
    ):
        yield Case(
            id=f"http/{name}",
            section=_JSON,
            row=row,
            call=tensors.ask("matrix", body([tensor("INPUT", "FP32", [2, 2], data)])),
        )
    for name, data in (("number", 1.0), ("string", "one"), ("null", None), ("object", {"a": 1})):
        given = {**tensor("INPUT", "FP32", [1]), "data": data}
        yield Case(
            id=f"http/data-{name}",
            section=_JSON,
            row="data that is no array",
            call=tensors.ask("id_fp32", body([given])),
        )


def _elements() -> Iterator[Case]:
    samples: tuple[tuple[str, str, Any], ...] = (
        ("BOOL", "integer", 1),
        ("BOOL", "two", 2),
        ("BOOL", "string", "true"),
        ("INT32", "fraction", 1.5),
        ("INT32", "whole-float", 1.0),
        ("INT32", "string", "1"),
        ("INT32", "boolean", True),
        ("INT32", "null", None),
        ("INT32", "out-of-range", 2**31),
        ("INT8", "out-of-range", 128),
        ("UINT8", "negative", -1),
        ("UINT16", "out-of-range", 2**16),
        ("UINT64", "out-of-range", 2**64),
        ("INT64", "out-of-range", 2**63),
        ("FP32", "integer", 7),
        ("FP32", "string", "1.0"),
        ("FP32", "boolean", True),
        ("FP32", "out-of-range", 1e300),
        ("FP64", "integer", 7),
        ("BYTES", "integer", 7),
        ("BYTES", "escaped", 'a"\\\n\té'),
        ("BYTES", "empty", ""),
        ("BYTES", "zero-byte", "a\0b"),
    )
    for datatype, name, value in samples:
        yield Case(
            id=f"http/element/{datatype.lower()}-{name}",
            section=_JSON,
            row=f"element of {datatype}: {name.replace('-', ' ')}",
            call=tensors.ask(f"id_{datatype.lower()}", body([tensor("INPUT", datatype, [1], [value])])),
        )
    not_text = tensors.wire("BYTES", [b"\xff\xfe"])
    yield Case(
        id="http/element/bytes-not-utf8",
        section=_JSON,
        row="BYTES that are not UTF-8, JSON out",
        call=tensors.ask("id_bytes", body([tensor("INPUT", "BYTES", [1], binary_data_size=len(not_text))]), not_text),
    )
    for name in ("nan", "inf"):
        data = tensors.wire("FP32", [float(name)])
        yield Case(
            id=f"http/element/fp32-{name}-out",
            section=_JSON,
            row="nan and infinities, JSON out",
            call=tensors.ask("id_fp32", body([tensor("INPUT", "FP32", [1], binary_data_size=4)]), data),
        )
    for name in ("NaN", "Infinity", "1e400"):
        text = json.dumps(body([ONE])).replace("[1.0]", f"[{name}]").encode()
        yield Case(
            id=f"http/element/fp32-{name.lower()}-in",
            section=_JSON,
            row=f"{name} in JSON",
            call=tensors.ask("id_fp32", text),
        )


def _malformed() -> Iterator[Case]:
    texts = (
        ("not-json", "a body that is no JSON", b"{not json"),
        ("cut", "JSON that is cut short", json.dumps(body([ONE])).encode()[:-2]),
        ("not-utf8", "JSON that is not UTF-8", b'{"id": "\xff", "inputs": []}'),
        ("trailing", "bytes after the JSON", json.dumps(body([ONE])).encode() + b"x"),
    )
    for name, row, text in texts:
        yield Case(
            id=f"http/{name}",
            section=_JSON,
            row=row,
            call=tensors.ask("id_fp32", text),
        )
    deep = b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b"}"
    yield Case(
        id="http/too-deep",
        section=_JSON,
        row="JSON nested 200 levels deep",
        call=tensors.ask("id_fp32", deep),
    )
    members: tuple[tuple[str, str, Any], ...] = (
        ("no-object", "a body that is no object", [1]),
        ("no-inputs", "inputs missing", {"id": "1"}),
        ("inputs-object", "inputs that are no array", {"inputs": {}}),
        ("input-number", "an input that is no object", {"inputs": [1]}),
        ("outputs-object", "outputs that are no array", {"inputs": [ONE], "outputs": {}}),
        ("output-number", "an output that is no object", {"inputs": [ONE], "outputs": [1]}),
        ("no-name", "an input without a name", {"inputs": [_without("name")]}),
        ("no-datatype", "an input without a datatype", {"inputs": [_without("datatype")]}),
        ("no-shape", "an input without a shape", {"inputs": [_without("shape")]}),
        ("no-data", "an input without data", {"inputs": [_without("data")]}),
        ("name-number", "an input's name that is no string", {"inputs": [{**ONE, "name": 7}]}),
        ("datatype-number", "an input's datatype that is no string", {"inputs": [{**ONE, "datatype": 7}]}),
        ("shape-number", "an input's shape that is no array", {"inputs": [{**ONE, "shape": 1}]}),
        ("shape-strings", "an input's shape of strings", {"inputs": [{**ONE, "shape": ["1"]}]}),
        ("shape-fraction", "an input's shape with a fraction", {"inputs": [{**ONE, "shape": [1.5]}]}),
        ("parameters-array", "an input's parameters that are no object", {"inputs": [{**ONE, "parameters": []}]}),
        ("output-no-name", "an output without a name", {"inputs": [ONE], "outputs": [{}]}),
        (
            "two-sources",
            "data and binary data in one input",
            {"inputs": [{**ONE, "parameters": {"binary_data_size": 4}}]},
        ),
    )
    for name, row, told in members:
        yield Case(id=f"http/{name}", section=_JSON, row=row, call=tensors.ask("id_fp32", told))
    yield Case(
        id="http/unknown-member",
        section=_JSON,
        row="unknown members",
        call=tensors.ask("id_fp32", body([{**ONE, "mine": 1}], mine={"a": [1]})),
    )


def _without(member: str) -> dict[str, Any]:
    return {key: value for key, value in ONE.items() if key != member}


def _binary() -> Iterator[Case]:
    data = tensors.wire("FP32", [1.0, 2.0])
    row = tensors.wire("FP32", [1.0, 2.0, 3.0, 4.0])
    mixed = [
        tensor("INPUT0", "FP32", [1, 4], binary_data_size=16),
        tensor("INPUT1", "FP32", [1, 4], [4.0, 3.0, 2.0, 1.0]),
    ]
    yield Case(
        id="http/mixed",
        section=_BINARY,
        row="binary and JSON inputs in one request",
        call=tensors.ask("add_sub", body(mixed), row),
    )
    yield Case(
        id="http/mixed-reversed",
        section=_BINARY,
        row="binary and JSON inputs in one request",
        call=tensors.ask("add_sub", body(mixed[::-1], [output("OUTPUT0", binary_data=True)]), row),
    )
    two = [tensor(f"INPUT{i}", "FP32", [1, 4], binary_data_size=16) for i in (0, 1)]
    yield Case(
        id="http/two",
        section=_BINARY,
        row="several binary inputs",
        call=tensors.ask("add_sub", body(two, parameters={"binary_data_output": True}), row + row),
    )
    sizes = (
        ("size-too-small", "binary_data_size below the tensor's size", 4, data[:4]),
        ("size-too-large", "binary_data_size above the tensor's size", 12, data + b"\0\0\0\0"),
        ("body-short", "a body shorter than binary_data_size", 8, data[:4]),
        ("body-long", "bytes after the last input", 8, data + b"\0"),
    )
    for name, shown, size, binary in sizes:
        yield Case(
            id=f"http/{name}",
            section=_BINARY,
            row=shown,
            call=tensors.ask("id_fp32", body([tensor("INPUT", "FP32", [2], binary_data_size=size)]), binary),
        )
    odd: tuple[tuple[str, str, Any], ...] = (
        ("size-negative", "negative", -8),
        ("size-string", "of a wrong type", "8"),
    )
    for name, shown, told in odd:
        yield Case(
            id=f"http/{name}",
            section=_BINARY,
            row=f"binary_data_size {shown}",
            call=tensors.ask("id_fp32", body([tensor("INPUT", "FP32", [2], binary_data_size=told)]), data),
        )
    yield from _header_lengths(data)
    yield from _strings()


def _header_lengths(data: bytes) -> Iterator[Case]:
    text = json.dumps(body([tensor("INPUT", "FP32", [2], binary_data_size=8)])).encode()
    lengths = (
        ("not-number", "not a number", "many"),
        ("negative", "negative", "-1"),
        ("beyond", "beyond the body", str(len(text) + len(data) + 1)),
        ("huge", "beyond 64 bits", "9" * 30),
        ("fraction", "not whole", "7.5"),
        ("short", "shorter than the JSON", str(len(text) - 1)),
    )
    for name, shown, value in lengths:
        yield Case(
            id=f"http/header-{name}",
            section=_BINARY,
            row=f"{_LENGTH} {shown}",
            call=case.post("/v2/models/id_fp32/infer", text + data, {_LENGTH: value}),
        )
    plain = json.dumps(body([ONE])).encode()
    yield Case(
        id="http/header-whole",
        section=_BINARY,
        row=f"{_LENGTH} of the whole body",
        call=case.post("/v2/models/id_fp32/infer", plain, {_LENGTH: str(len(plain))}),
    )


def _strings() -> Iterator[Case]:
    samples = (
        ("length-cut", "a string's length that is cut short", b"\x03\0\0"),
        ("body-cut", "a string that is cut short", b"\x05\0\0\0abc"),
        ("too-few", "fewer strings than the shape", tensors.wire("BYTES", [b"a"])),
        ("too-many", "more strings than the shape", tensors.wire("BYTES", [b"a", b"b", b"c"])),
    )
    for name, row, binary in samples:
        yield Case(
            id=f"http/string-{name}",
            section=_BINARY,
            row=row,
            call=tensors.ask("id_bytes", body([tensor("INPUT", "BYTES", [2], binary_data_size=len(binary))]), binary),
        )
        yield Case(
            id=f"grpc/string-{name}",
            section=_BINARY,
            row=row,
            call=tensors.infer("id_bytes", [tensors.Raw("INPUT", "BYTES", [2], binary)]),
        )
    odd = tensors.wire("BYTES", [b"\xff\0\xfe", b"x" * 70000])
    yield Case(
        id="http/string-any-bytes",
        section=_BINARY,
        row="strings of any bytes",
        call=tensors.ask(
            "id_bytes",
            body([tensor("INPUT", "BYTES", [2], binary_data_size=len(odd))], [output("OUTPUT", binary_data=True)]),
            odd,
        ),
    )
    yield Case(
        id="grpc/string-any-bytes",
        section=_BINARY,
        row="strings of any bytes",
        call=tensors.infer("id_bytes", [tensors.Raw("INPUT", "BYTES", [2], odd)]),
    )


def _raw() -> Iterator[Case]:
    zero = {_LENGTH: "0"}
    good = (
        ("variable", "id_fp32", tensors.wire("FP32", [1.0, 2.0, 3.0])),
        ("fixed", "fixed", tensors.wire("FP32", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("batched", "batched", tensors.wire("FP32", [1.0, 2.0, 3.0, 4.0])),
        ("text", "text", b"any bytes \xff"),
        ("batched-text", "batched_text", b"any bytes"),
        ("empty-text", "text", b""),
    )
    for name, model, data in good:
        yield Case(
            id=f"http/{name}",
            section=_RAW,
            row="the body as the one input",
            call=case.post(f"/v2/models/{model}/infer", data, zero),
        )
    bad = (
        ("size", "a size that does not fit the datatype", "id_fp32", b"12345"),
        ("two-inputs", "a model with several inputs", "add_sub", b"1234"),
        ("two-variable", "several variable dimensions", "matrix", b"1234"),
        ("fixed-size", "another size than the fixed one", "fixed", b"1234"),
        ("bytes-shape", "BYTES of another shape than [1]", "id_bytes", b"1234"),
        ("unknown", "an unknown model", "absent", b"1234"),
        ("empty", "an empty body", "id_fp32", b""),
        ("empty-fixed", "an empty body", "fixed", b""),
    )
    for name, row, model, data in bad:
        yield Case(
            id=f"http/{name}",
            section=_RAW,
            row=row,
            call=case.post(f"/v2/models/{model}/infer", data, zero),
        )
    yield Case(
        id="http/empty-no-header",
        section=_RAW,
        row="an empty body without the header",
        call=case.post("/v2/models/fixed/infer", b""),
    )


def _requests() -> Iterator[Case]:
    text = json.dumps(body([ONE])).encode()
    data = tensors.wire("FP32", [1.0, 2.0])
    head = json.dumps(body([tensor("INPUT", "FP32", [2], binary_data_size=8)])).encode()
    for coding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        headers = {"Content-Encoding": coding}
        yield Case(
            id=f"http/request-{coding}",
            section=_COMPRESSION,
            row=f"request in {coding}",
            call=case.post("/v2/models/id_fp32/infer", pack(text), headers),
        )
        yield Case(
            id=f"http/request-{coding}-binary",
            section=_COMPRESSION,
            row=f"request in {coding}, binary data",
            call=case.post("/v2/models/id_fp32/infer", pack(head + data), {**headers, _LENGTH: str(len(head))}),
        )
        yield Case(
            id=f"http/request-{coding}-broken",
            section=_COMPRESSION,
            row=f"request in {coding} that is none",
            call=case.post("/v2/models/id_fp32/infer", text, headers),
            text=Text.FREE,
        )
        yield Case(
            id=f"http/request-{coding}-cut",
            section=_COMPRESSION,
            row=f"request in {coding} that is cut short",
            call=case.post("/v2/models/id_fp32/infer", pack(text)[:-6], headers),
            text=Text.FREE,
        )
    yield Case(
        id="http/request-identity",
        section=_COMPRESSION,
        row="request in identity",
        call=case.post("/v2/models/id_fp32/infer", text, {"Content-Encoding": "identity"}),
    )
    for coding in ("br", "zstd", "gzip, deflate"):
        yield Case(
            id=f"http/request-{coding.replace(', ', '-')}-coding",
            section=_COMPRESSION,
            row="request in another coding",
            call=case.post("/v2/models/id_fp32/infer", text, {"Content-Encoding": coding}),
            text=Text.FREE,
        )
    for coding in ("gzip", "deflate"):
        yield Case(
            id=f"grpc/request-{coding}",
            section=_COMPRESSION,
            row=f"request in {coding}",
            call=tensors_rpc(coding),
        )


def tensors_rpc(coding: str) -> case.Rpc:
    """A call whose messages are compressed."""
    made = tensors.request("id_fp32", [tensors.Raw("INPUT", "FP32", [256], tensors.wire("FP32", [1.0] * 256))])
    return case.rpc("ModelInfer", made, compression=coding)


def _responses() -> Iterator[Case]:
    accepted = (
        "gzip",
        "deflate",
        "gzip, deflate",
        "deflate, gzip;q=0.5",
        "gzip;q=0.2, deflate;q=0.8",
        "identity",
        "*",
        "br",
        "br, gzip",
        "gzip;q=0",
        "identity;q=0.5, gzip;q=0.4",
        "gzip;q=1.0, identity; q=0.5",
    )
    data = tensors.wire("FP32", [1.0] * 64)
    asked = body([tensor("INPUT", "FP32", [64], [1.0] * 64)])
    sized = body([tensor("INPUT", "FP32", [64], binary_data_size=256)], [output("OUTPUT", binary_data=True)])
    for number, value in enumerate(accepted):
        yield Case(
            id=f"http/response-{number}",
            section=_COMPRESSION,
            row=f"Accept-Encoding: {value}",
            call=tensors.ask("id_fp32", asked, headers={"Accept-Encoding": value}),
        )
    for coding in ("gzip", "deflate"):
        yield Case(
            id=f"http/response-{coding}-binary",
            section=_COMPRESSION,
            row=f"binary data in an answer in {coding}",
            call=tensors.ask("id_fp32", sized, data, headers={"Accept-Encoding": coding}),
        )
    yield Case(
        id="http/response-error",
        section=_COMPRESSION,
        row="an error where gzip is accepted",
        call=tensors.ask("absent", asked, headers={"Accept-Encoding": "gzip"}),
    )

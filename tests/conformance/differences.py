"""In what our answers differ from Triton's, and why: the only differences that the suite lets pass.

Pure data. An entry holds for every case that one of its patterns names, and each of these must need it.
"""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import functools

from tests.conformance.comparing import Aspect


class Verdict(enum.Enum):
    """How a difference is to be judged."""

    STRICTER = "ours is stricter"
    NEWER = "newer Triton answers as ours"
    LACKING = "not supported yet"
    DELIBERATE = "deliberate"
    WORDS = "other words"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A known difference; the patterns are those of a shell, over the ids of cases.

    `fragment` is what clients may match on: both servers say it, each in its own sentence.
    """

    patterns: tuple[str, ...]
    aspects: frozenset[Aspect]
    verdict: Verdict
    reason: str
    fragment: str = ""

    def holds_for(self, case_id: str) -> bool:
        return any(matches(pattern, case_id) for pattern in self.patterns)


def matches(pattern: str, case_id: str) -> bool:
    return fnmatch.fnmatchcase(case_id, pattern)


@functools.cache
def of(case_id: str) -> tuple[Difference, ...]:
    """The differences that are known of a case."""
    return tuple(each for each in DIFFERENCES if each.holds_for(case_id))


def _known(verdict: Verdict, reason: str, aspects: str, *patterns: str, fragment: str = "") -> Difference:
    return Difference(patterns, frozenset(Aspect(name) for name in aspects.split("+")), verdict, reason, fragment)


DIFFERENCES: tuple[Difference, ...] = (
    # Paths, health and metadata
    _known(Verdict.DELIBERATE, "percent-encoding is decoded in every path", "status", "path/http/percent"),
    _known(
        Verdict.LACKING,
        "the message is given up before a handler sees it",
        "status",
        "path/grpc/unreadable",
    ),
    _known(
        Verdict.DELIBERATE,
        "the health protocol wants NOT_FOUND for a service that is not known; Triton looks at no name",
        "status",
        "health/grpc/standard-unknown",
    ),
    _known(
        Verdict.LACKING,
        "only the extensions that this server has are named",
        "body",
        "metadata/*/server",
    ),
    _known(
        Verdict.WORDS,
        "says what a version may be, not how it was read",
        "text",
        "health/grpc/model/version-not-decimal",
        "versions/grpc/not-decimal",
        fragment="version",
    ),
    # Datatypes, shapes and counts
    _known(
        Verdict.WORDS,
        "names the tensor, and binary data as the way out",
        "text",
        "datatype/[bf][pf]16/http/*json",
        "datatype/[bf][pf]16/http/empty",
        fragment="16",
    ),
    _known(
        Verdict.WORDS,
        "names raw_input_contents as the way out",
        "text",
        "datatype/fp16/grpc/contents",
        "datatype/bf16/grpc/contents",
    ),
    _known(
        Verdict.WORDS,
        "ends with the two shapes",
        "text",
        "shape/*/batch-missing*",
        "shape/*/wrong-dimension*",
        "shape/*/wrong-rank*",
        fragment="unexpected shape for input 'INPUT' for model",
    ),
    _known(Verdict.WORDS, "names the batch, not the bytes", "text", "shape/*/batch-zero*"),
    _known(Verdict.WORDS, "names the sizes", "text", "shape/*/batches-differ*", fragment="for"),
    _known(
        Verdict.WORDS,
        "lists the inputs in the order of the request",
        "text",
        "shape/*/input-beyond*",
        fragment="expected 1 inputs but got 2 inputs for model 'id_fp32'",
    ),
    _known(
        Verdict.DELIBERATE,
        "the request's id stands before every error of a request",
        "text",
        "shape/*/input-unknown*",
        "outputs/*/unknown",
        "versions/*/id-in-error",
        fragment="unexpected inference",
    ),
    _known(Verdict.WORDS, "says which input, not by which request", "text", "shape/*/input-twice*", fragment="INPUT"),
    _known(Verdict.WORDS, "says the datatype that was given", "text", "shape/*/datatype-unknown", fragment="INPUT"),
    _known(
        Verdict.STRICTER,
        "a shape whose size cannot be counted is refused as such; Triton counts on, with what is left of the number",
        "text",
        "shape/*/shape-huge",
        "shape/*/shape-overflow",
    ),
    _known(Verdict.WORDS, "names the dimension", "text", "shape/grpc/shape-negative", fragment="INPUT"),
    # Outputs
    _known(
        Verdict.DELIBERATE,
        "outputs come in the order in which they are asked for; Triton's Python backend keeps the model's",
        "body",
        "outputs/*/reversed",
    ),
    _known(Verdict.NEWER, "an output asked for twice is refused", "status", "outputs/*/twice"),
    _known(
        Verdict.DELIBERATE,
        "binary_data_output holds for every output that says nothing else; Triton leaves it out where outputs are listed",
        "body+headers",
        "outputs/http/request-wide",
        "outputs/http/over-request",
    ),
    # JSON
    _known(
        Verdict.NEWER,
        "what is wrong in a request's JSON is the client's fault: 400, not 500",
        "status",
        "shape/http/shape-negative",
        "outputs/http/binary-not-boolean",
        "versions/http/id-not-string",
        "parameters/http/wrong-*",
        "parameters/http/not-object",
        "parameters/http/binary-output-not-boolean",
        "json/http/too-few",
        "json/http/too-many",
        "json/http/none",
        "json/http/data-*",
        "json/http/element/bool-two",
        "json/http/element/*-string",
        "json/http/element/int32-[!o]*",
        "json/http/element/uint8-negative",
        "json/http/element/*int64-out-of-range",
        "json/http/element/fp32-boolean",
        "json/http/element/bytes-integer",
        "json/http/element/fp32-1e400-in",
        "json/http/not-json",
        "json/http/cut",
        "json/http/trailing",
        "json/http/no-object",
        "json/http/no-inputs",
        "json/http/*-object",
        "json/http/output-number",
        "json/http/*no-name",
        "json/http/no-datatype",
        "json/http/no-shape",
        "json/http/name-number",
        "json/http/datatype-number",
        "json/http/shape-*",
        "binary/http/size-negative",
        "binary/http/size-string",
        "binary/http/header-fraction",
        "binary/http/header-short",
        "compression/http/request-deflate-cut",
    ),
    _known(
        Verdict.DELIBERATE,
        "0 and 1 are taken for BOOL, as the protocol allows",
        "status",
        "json/http/element/bool-integer",
    ),
    _known(
        Verdict.STRICTER,
        "data must be flat or nested to the shape; Triton flattens any nesting",
        "status",
        "json/http/partly-nested",
        "json/http/otherwise-nested",
        "json/http/deeper",
        "json/http/ragged",
        "json/http/mixed",
    ),
    _known(
        Verdict.STRICTER,
        "a number that its datatype cannot hold is refused; Triton wraps it",
        "status",
        "json/http/element/int8-out-of-range",
        "json/http/element/int32-out-of-range",
        "json/http/element/uint16-out-of-range",
        "json/http/element/fp32-out-of-range",
    ),
    _known(
        Verdict.STRICTER,
        "NaN and infinities are not JSON: they are refused both ways, binary data carries them",
        "status",
        "json/http/element/fp32-nan-*",
        "json/http/element/fp32-inf*",
    ),
    _known(
        Verdict.STRICTER,
        "only UTF-8 is sent and taken as JSON",
        "text+body",
        "json/http/not-utf8",
    ),
    _known(Verdict.STRICTER, "parameters must be an object", "status", "json/http/parameters-array"),
    _known(
        Verdict.WORDS,
        "says which member is at fault, and of which input",
        "text",
        "json/http/input-number",
        "json/http/no-data",
        "json/http/two-sources",
    ),
    _known(Verdict.NEWER, "the depth of nesting is bounded", "text", "json/http/too-deep"),
    # Parameters
    _known(
        Verdict.WORDS,
        "names the types in words, not the members of the message",
        "text",
        "parameters/grpc/wrong-*",
        "parameters/grpc/no-value",
        "parameters/http/object",
        "parameters/http/array",
        "parameters/http/null",
        fragment="'",
    ),
    _known(
        Verdict.WORDS,
        "says which key",
        "text",
        "parameters/*/reserved",
        fragment="parameter keys starting with 'triton_' are reserved",
    ),
    _known(Verdict.NEWER, "sequence_id may be a uint64", "status", "parameters/grpc/sequence-unsigned"),
    # Binary tensor data
    _known(
        Verdict.WORDS, "says how many bytes there are", "text", "binary/http/body-short", fragment="for input 'INPUT'"
    ),
    _known(
        Verdict.WORDS,
        "says how many bytes there are",
        "text",
        "binary/http/body-long",
        fragment="unexpected additional input data for model 'id_fp32'",
    ),
    _known(
        Verdict.STRICTER,
        "Inference-Header-Content-Length must be a number; Triton takes what is none for 0",
        "status",
        "binary/http/header-not-number",
    ),
    _known(
        Verdict.WORDS,
        "says what the header may be",
        "text",
        "binary/http/header-negative",
        "binary/http/header-beyond",
        "binary/http/header-huge",
    ),
    _known(
        Verdict.WORDS,
        "the elements of a string tensor are counted before they run, by their bytes",
        "text",
        "binary/*/string-length-cut",
        "binary/*/string-body-cut",
        "binary/*/string-too-*",
        fragment="string",
    ),
    _known(
        Verdict.LACKING,
        "ONNX Runtime's strings are text: elements of BYTES that are not UTF-8 are refused",
        "status",
        "binary/*/string-any-bytes",
        "json/http/element/bytes-not-utf8",
        "raw/http/text",
    ),
    # Raw binary requests
    _known(
        Verdict.WORDS,
        "names the input by its own name",
        "text",
        "raw/http/size",
        "raw/http/two-inputs",
        "raw/http/two-variable",
        "raw/http/fixed-size",
        "raw/http/bytes-shape",
        "raw/http/empty-fixed",
        "raw/http/empty-no-header",
    ),
    _known(
        Verdict.DELIBERATE,
        "an answer with a binary output is an octet stream, also where the output holds no element",
        "headers",
        "raw/http/empty",
    ),
    # Compression
    _known(
        Verdict.STRICTER,
        "a stream that is broken or ends early is refused; Triton takes what came before",
        "status",
        "compression/http/request-gzip-broken",
        "compression/http/request-gzip-cut",
        "compression/http/request-deflate-broken",
    ),
)

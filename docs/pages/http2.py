"""The page of how well the own gRPC front speaks HTTP/2, from the table that a test holds it to."""

from __future__ import annotations

from docs.pages import markdown
from tests.interop import http2_failures


def text() -> str:
    """How many cases of h2spec pass, and why the others do not."""
    failures = http2_failures.FAILURES
    passed = http2_failures.CASES - len(failures)
    opening = (
        "`tms-worker` speaks HTTP/2 by itself (`--grpc-frontend=native`, the default). [h2spec](https://github.com/summerwind/h2spec) judges it "
        f"in every run of the tests: {passed} of {http2_failures.CASES} cases pass. A case that fails and is not listed here "
        "fails the tests, and so does one that is listed and passes."
    )
    stranger = (
        "h2spec sends plain requests, not gRPC's. They get what any HTTP client gets from this port: status 405 for other methods "
        "than POST, 415 for other content types than `application/grpc`, with a line of text that says so. Unmodified clients of "
        "grpc-go, grpc-js, grpcio and grpc.aio judge the rest (`tests/interop`), and fuzzing what nobody would send."
    )
    rows = ["| case | title | why it fails |", "| --- | --- | --- |"]
    rows += [f"| `{each.case}` | {markdown.cell(each.title)} | {markdown.cell(each.reason)} |" for each in failures]
    return "\n\n".join(("# HTTP/2 conformance", opening, stranger, "\n".join(rows))) + "\n"

"""Traces as OpenTelemetry spans, sent to a collector over OTLP/HTTP by a worker process."""

from __future__ import annotations

import asyncio
import http.server
import json
import pathlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from protos.inference.v2 import predict_pb2, predict_pb2_grpc
from tests.support import ensembles

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


class Collector:
    """Takes spans, and gives them to the test."""

    def __init__(self) -> None:
        self._taken: queue.Queue[tuple[str, bytes]] = queue.Queue()
        taken = self._taken

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                taken.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def resources(self) -> list[Any]:
        """All that has come."""
        found: list[Any] = []
        while not self._taken.empty():
            path, body = self._taken.get_nowait()
            assert path == "/v1/traces"
            found += trace_service_pb2.ExportTraceServiceRequest.FromString(body).resource_spans
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def infer(*headers: str, model: str = "ident", name: str = "INPUT") -> bytes:
    tensor = {"name": name, "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    body = json.dumps({"id": "7", "inputs": [tensor]}).encode()
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: h",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def ask(port: int, *headers: str, **asked: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(infer(*headers, **asked))
    async with asyncio.timeout(60):
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


def attributes(found: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in found}


@pytest.mark.slow  # a whole worker starts and ends
async def test_requests_become_spans_within_those_of_their_clients(launch: Any, collector: Collector) -> None:
    flags = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=1", f"opentelemetry,url={collector.url}"]
    flags += ["opentelemetry,resource=deployment=test"]
    worker = await launch(*(f"--trace-config={flag}" for flag in flags))
    await ask(worker.ports["http"], f"traceparent: {PARENT}")
    await ask(worker.ports["http"], "traceparent: nonsense")
    message = predict_pb2.ModelInferRequest(model_name="ident", raw_input_contents=[np.zeros(4, "<f4").tobytes()])
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 4])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{worker.ports['grpc']}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        await stub.ModelInfer(message, metadata=(("traceparent", PARENT),))
        settings = (await stub.TraceSetting(predict_pb2.TraceSettingRequest())).settings
        assert list(settings["trace_mode"].value) == ["opentelemetry"]
        change = predict_pb2.TraceSettingRequest()
        change.settings["trace_rate"].value.append("5")
        assert await stub.TraceSetting(change).code() is grpc.StatusCode.UNIMPLEMENTED
    worker.process.terminate()
    assert await asyncio.to_thread(worker.wait) == 0
    resources = collector.resources()
    assert {attributes(each.resource.attributes)["deployment"] for each in resources} == {"test"}
    found = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    roots = sorted((span for span in found if span.name == "InferRequest"), key=lambda span: span.start_time_unix_nano)
    assert [span.trace_id.hex() == TRACE for span in roots] == [True, False, True]
    assert [span.parent_span_id.hex() for span in roots] == [SPAN, "", SPAN]
    assert attributes(roots[0].attributes) == {
        "triton.model_name": "ident",
        "triton.model_version": 1,
        "triton.trace_id": 1,
        "triton.request_id": "7",
    }
    assert [roots[at].events[0].name for at in (0, 2)] == ["HTTP_RECV_START", "GRPC_WAITREAD_START"]
    assert {"REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_END"} <= {each.name for each in roots[0].events}
    children = {span.parent_span_id for span in found if span.name == "compute"}
    assert children == {span.span_id for span in roots}
    for span in found:
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano


@pytest.mark.slow  # a whole worker starts and ends
async def test_the_steps_of_an_ensemble_are_spans_within_its_own(
    launch: Any, collector: Collector, repository: pathlib.Path
) -> None:
    ensembles.put(repository, "inner", ensembles.chain("ident", "ident", batch=4))
    step: ensembles.Step = ("inner", {"IN": "IN"}, {"OUT": "OUT"})
    four = ("FP32", [4])
    ensembles.put(repository, "outer", ensembles.config({"IN": four}, {"OUT": four}, [step], batch=4))
    flags = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=1", f"opentelemetry,url={collector.url}"]
    worker = await launch(*(f"--trace-config={flag}" for flag in flags))
    await ask(worker.ports["http"], f"traceparent: {PARENT}", model="outer", name="IN")
    worker.process.terminate()
    assert await asyncio.to_thread(worker.wait) == 0
    spans = [span for each in collector.resources() for scope in each.scope_spans for span in scope.spans]
    found = [span for span in spans if span.name == "InferRequest"]
    names = {span.span_id: attributes(span.attributes)["triton.model_name"] for span in found}
    within = sorted((names[span.span_id], names.get(span.parent_span_id, "client")) for span in found)
    assert within == [("ident", "inner"), ("ident", "inner"), ("inner", "outer"), ("outer", "client")]
    assert {span.trace_id.hex() for span in spans} == {TRACE}


@pytest.mark.slow  # a whole worker starts and ends
async def test_a_collector_that_is_not_there_harms_nobody(launch: Any) -> None:
    flags = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=1", "opentelemetry,url=http://127.0.0.1:9/v1/traces"]
    worker = await launch(*(f"--trace-config={flag}" for flag in flags))
    await ask(worker.ports["http"])
    worker.process.terminate()
    assert await asyncio.to_thread(worker.wait) == 0

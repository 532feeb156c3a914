"""Restricted groups, forwarded headers and the control token over both fronts."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpu_worker.wire import control, forwarding, restriction
from gpu_worker.wire import rules as wire_rules
from protos.inference.v2 import predict_pb2, predict_pb2_grpc
from tests.support import scripted_engine
from tests.support.scripted_engine import text

KEY, VALUE = "admin-key", "let-me"


def request(verb: str, path: str, body: Any = None, *headers: str) -> bytes:
    raw = b"" if body is None else json.dumps(body).encode()
    lines = [f"{verb} {path} HTTP/1.1", "Host: h", f"Content-Length: {len(raw)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def restricted(*apis: str, kind: str = "API", prefix: str = "") -> wire_rules.Rules:
    keys = dict.fromkeys(apis, (prefix + KEY, VALUE))
    return wire_rules.Rules(restriction=restriction.Restriction(kind, keys))


async def test_http_calls_of_a_group_need_its_header(serve: Any) -> None:
    client = await (await serve(rules=restricted("health", "inference", "model-repository", "trace"))).connect()
    for verb, path in (
        ("GET", "/v2/health/live"),
        ("GET", "/v2/models/ident/ready"),
        ("POST", "/v2/models/ident/infer"),
        ("POST", "/v2/models/ident/generate"),
        ("POST", "/v2/models/ident/generate_stream"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/ident/unload"),
        ("GET", "/v2/trace/setting"),
    ):
        for headers in ((), (f"{KEY}: wrong",)):
            answer = await client.ask(request(verb, path, None, *headers))
            assert (answer.status, answer.json()) == (
                403,
                {"error": "This API is restricted, expecting header 'admin-key'"},
            )
        assert (await client.ask(request(verb, path, None, f"Admin-Key: {VALUE}"))).status != 403
    for path in ("/v2", "/v2/logging", "/v2/models/stats", "/v2/models/slow/config"):
        assert (await client.ask(request("GET", path))).status == 200


async def test_grpc_calls_of_a_group_need_its_key(serve: Any) -> None:
    rules = restricted("health", "inference", "logging", kind="protocol", prefix=restriction.GRPC_PREFIX)
    front = await serve(rules=rules)
    name = restriction.GRPC_PREFIX + KEY

    async def stream() -> Any:
        yield predict_pb2.ModelInferRequest(model_name="nope")

    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        checks: Any = health_pb2_grpc.HealthStub(channel)
        asked: list[tuple[Any, Any]] = [
            (stub.ServerLive, predict_pb2.ServerLiveRequest()),
            (checks.Check, health_pb2.HealthCheckRequest()),
            (stub.ModelInfer, predict_pb2.ModelInferRequest(model_name="nope")),
            (stub.LogSettings, predict_pb2.LogSettingsRequest()),
        ]
        told = f"This protocol is restricted, expecting header '{name}'"
        for call, message in asked:
            found = call(message, metadata=((name, "wrong"),))
            assert (await found.code(), await found.details()) == (grpc.StatusCode.UNAVAILABLE, told)
            assert await call(message, metadata=((name, VALUE),)).code() is not grpc.StatusCode.UNAVAILABLE
        # Nothing is sent: the client of grpc.aio takes a failed write for the end of the call.
        found = stub.ModelStreamInfer(metadata=((name, "wrong"),))
        assert (await found.code(), await found.details()) == (grpc.StatusCode.UNAVAILABLE, told)
        answer = await stub.ModelStreamInfer(stream(), metadata=((name, VALUE),)).read()
        assert "'nope' is not found" in answer.error_message
        await stub.ServerMetadata(predict_pb2.ServerMetadataRequest())


async def test_http_headers_reach_the_model_as_parameters(serve: Any) -> None:
    engine = scripted_engine.Scripted()
    front = await serve(engine=engine, rules=wire_rules.Rules(forwarding=forwarding.Forwarding("x-.*|timeout")))
    client = await front.connect()
    infer = {
        "inputs": [{"name": "PROMPT", "shape": [1], "datatype": "BYTES", "data": ["p"]}],
        "parameters": {"top": 0.5, "x-a": "body"},
    }
    for path, body in (
        ("infer", infer),
        ("generate", {"PROMPT": "p", "top": 0.5}),
        ("generate_stream", {"PROMPT": "p", "top": 0.5}),
    ):
        for value in ("one", "two"):
            await client.send(request("POST", f"/v2/models/many/{path}", body, f"X-A: {value}", "Y: 2"))
            asked = await engine.next()
            assert asked.parameters == {"top": 0.5, "x-a": value}
            asked.reply(text("t"))
            assert (await client.answers(1))[0].status == 200
        refused = await client.ask(request("POST", f"/v2/models/many/{path}", body, "Timeout: 5"))
        assert (refused.status, "'timeout' cannot be forwarded" in refused.json()["error"]) == (400, True)
    assert engine.asked.empty()


async def test_grpc_metadata_reaches_the_model_as_parameters(serve: Any) -> None:
    engine = scripted_engine.Scripted()
    front = await serve(engine=engine, rules=wire_rules.Rules(forwarding=forwarding.Forwarding("X-.*|priority")))
    message = predict_pb2.ModelInferRequest(model_name="many", raw_input_contents=[b"\1\0\0\0p"])
    message.inputs.add(name="PROMPT", datatype="BYTES", shape=[1])
    message.parameters["top"].double_param = 0.5

    async def stream() -> Any:
        yield message

    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = (("x-a", "1"), ("y", "2"))
        unary = stub.ModelInfer(message, metadata=metadata)
        many = stub.ModelStreamInfer(stream(), metadata=metadata)
        for _ in range(2):
            asked = await engine.next()
            assert asked.parameters == {"top": 0.5, "x-a": "1"}
            asked.reply(text("t", count=2, ratio=0.25, kind="k", fine=True))
        answer = await unary
        given = {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in answer.parameters.items()}
        assert given == {"count": 2, "ratio": 0.25, "kind": "k", "fine": True}
        assert (await many.read()).infer_response.parameters["ratio"].double_param == 0.25
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(message, metadata=(("priority", "1"),))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        told = await stub.ModelStreamInfer(stream(), metadata=(("priority", "1"),)).read()
        assert "'priority' cannot be forwarded" in told.error_message


async def test_response_parameters_are_told_over_http(serve: Any) -> None:
    engine = scripted_engine.Scripted()
    client = await (await serve(engine=engine)).connect()
    infer = {"inputs": [{"name": "PROMPT", "shape": [1], "datatype": "BYTES", "data": ["p"]}]}
    for binary in (False, True):
        await client.send(
            request("POST", "/v2/models/many/infer", infer | {"parameters": {"binary_data_output": binary}})
        )
        (await engine.next()).reply(text("t", count=2, ratio=0.25, kind="k", fine=True))
        (answer,) = await client.answers(1)
        length = int(answer.headers.get("inference-header-content-length", len(answer.body)))
        shown = json.loads(answer.body[:length])
        assert shown["parameters"] == {"count": 2, "ratio": 0.25, "kind": "k", "fine": True}


async def test_settings_of_the_server_change_only_for_who_has_the_control_token(serve: Any) -> None:
    front = await serve(rules=wire_rules.Rules(control=control.Control("t")))
    client = await front.connect()
    for path in ("/v2/logging", "/v2/trace/setting", "/v2/models/ident/trace/setting"):
        assert (await client.ask(request("GET", path))).status == 200
        answer = await client.ask(request("POST", path, {}))
        assert (answer.status, "tms-control-token" in answer.json()["error"]) == (503, True)
        assert (await client.ask(request("POST", path, {}, "tms-control-token: t"))).status == 200
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        log, trace = predict_pb2.LogSettingsRequest(), predict_pb2.TraceSettingRequest()
        await stub.LogSettings(log)
        await stub.TraceSetting(trace)
        log.settings["log_info"].bool_param = True
        trace.settings["trace_rate"].value.append("5")
        for call, message in ((stub.LogSettings, log), (stub.TraceSetting, trace)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(message)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await call(message, metadata=(("tms-control-token", "t"),))

"""Paths, health and metadata: section 1 of the contract."""

from __future__ import annotations

from collections.abc import Iterator

from protos.inference.v2 import predict_pb2 as pb
from tests.conformance import case
from tests.conformance.case import Case, Text

_PATHS = "Paths and verbs"
_HEALTH = "Health and metadata"
_SERVER = frozenset(("name", "version"))
# What a model is run by: each server has a backend of its own.
_BACKEND = frozenset(("platform", "backend", "default_model_filename"))
_MODELS = ("id_fp32", "batched", "add_sub", "id_bytes", "classes", "versioned", "matrix")


def cases() -> Iterator[Case]:
    yield from case.named("path", list(_paths()))
    yield from case.named("health", [*_health(), *_model_ready()])
    yield from case.named("metadata", [*_server(), *_metadata()])
    yield from case.named("config", list(_config()))


def _paths() -> Iterator[Case]:
    gone = (
        ("trailing-slash", "trailing slash", case.get("/v2/")),
        ("root", "path outside /v2", case.get("/")),
        ("unknown", "unknown path", case.get("/v2/nothing")),
        ("deeper", "unknown path below a model", case.get("/v2/models/id_fp32/nothing")),
        ("version-not-decimal", "version that is not decimal", case.get("/v2/models/id_fp32/versions/one")),
        ("version-negative", "version that is not decimal", case.get("/v2/models/id_fp32/versions/-1")),
        ("upper-case", "path in upper case", case.get("/V2/health/live")),
        ("models", "path without a model", case.get("/v2/models")),
    )
    for name, row, call in gone:
        yield Case(id=f"http/{name}", section=_PATHS, row=row, call=call)
    wrong = (
        ("POST", "/v2/health/live"),
        ("POST", "/v2/health/ready"),
        ("POST", "/v2"),
        ("POST", "/v2/models/id_fp32"),
        ("POST", "/v2/models/id_fp32/ready"),
        ("POST", "/v2/models/id_fp32/config"),
        ("POST", "/v2/models/id_fp32/stats"),
        ("POST", "/v2/models/stats"),
        ("GET", "/v2/models/id_fp32/infer"),
        ("GET", "/v2/models/id_fp32/generate"),
        ("GET", "/v2/models/id_fp32/generate_stream"),
        ("GET", "/v2/repository/index"),
        ("GET", "/v2/repository/models/id_fp32/load"),
        ("GET", "/v2/repository/models/id_fp32/unload"),
        ("POST", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/systemsharedmemory/region/r/register"),
        ("GET", "/v2/systemsharedmemory/unregister"),
        ("POST", "/v2/cudasharedmemory/status"),
        ("PUT", "/v2/logging"),
        ("PUT", "/v2/trace/setting"),
        ("DELETE", "/v2/models/id_fp32"),
        ("HEAD", "/v2/health/live"),
    )
    for verb, path in wrong:
        yield Case(
            id=f"http/verb/{verb}{path.replace('/', '.')}",
            section=_PATHS,
            row=f"wrong verb: {verb} {path.replace('id_fp32', 'M')}",
            call=case.http(verb, path),
        )
    yield Case(
        id="http/percent", section=_PATHS, row="percent-encoded model name", call=case.get("/v2/models/id%5Ffp32/ready")
    )
    yield Case(id="http/query", section=_PATHS, row="query behind a path", call=case.get("/v2/health/live?x=1"))
    yield Case(
        id="grpc/unknown-method",
        section=_PATHS,
        row="unknown method",
        call=case.rpc("Nothing", b""),
        text=Text.FREE,
    )
    yield Case(
        id="grpc/unreadable",
        section=_PATHS,
        row="message that is none",
        call=case.rpc("ModelInfer", b"\xff\xff\xff"),
        text=Text.FREE,
    )


def _health() -> Iterator[Case]:
    for name in ("live", "ready"):
        row = f"server {name}"
        yield Case(id=f"http/{name}", section=_HEALTH, row=row, call=case.get(f"/v2/health/{name}"))
    yield Case(id="grpc/live", section=_HEALTH, row="server live", call=case.rpc("ServerLive", b""))
    yield Case(id="grpc/ready", section=_HEALTH, row="server ready", call=case.rpc("ServerReady", b""))
    service = "/grpc.health.v1.Health/Check"
    yield Case(id="grpc/standard", section=_HEALTH, row="grpc.health.v1 of the server", call=case.rpc(service, b""))
    yield Case(
        id="grpc/standard-service",
        section=_HEALTH,
        row="grpc.health.v1 of the service",
        call=case.rpc(service, b"\x0a" + bytes([len(case.SERVICE)]) + case.SERVICE.encode()),
    )
    yield Case(
        id="grpc/standard-unknown",
        section=_HEALTH,
        row="grpc.health.v1 of an unknown service",
        call=case.rpc(service, b"\x0a\x06absent"),
        text=Text.FREE,
    )


def _model_ready() -> Iterator[Case]:
    row = "model ready"
    for name, path in (("model", "id_fp32"), ("version", "versioned/versions/3")):
        yield Case(id=f"http/model/{name}", section=_HEALTH, row=row, call=case.get(f"/v2/models/{path}/ready"))
    for name, path in (("unknown", "absent"), ("version-unknown", "versioned/versions/7"), ("untouched", "untouched")):
        yield Case(
            id=f"http/model/{name}",
            section=_HEALTH,
            row="model ready, of one that is not",
            call=case.get(f"/v2/models/{path}/ready"),
        )
    for name, model, version in (("model", "id_fp32", ""), ("version", "versioned", "3")):
        request = pb.ModelReadyRequest(name=model, version=version)
        yield Case(id=f"grpc/model/{name}", section=_HEALTH, row=row, call=case.rpc("ModelReady", request))
    for name, model, version in (
        ("unknown", "absent", ""),
        ("version-unknown", "versioned", "7"),
        ("untouched", "untouched", ""),
    ):
        yield Case(
            id=f"grpc/model/{name}",
            section=_HEALTH,
            row="model ready, of one that is not",
            call=case.rpc("ModelReady", pb.ModelReadyRequest(name=model, version=version)),
        )
    yield Case(
        id="grpc/model/version-not-decimal",
        section=_HEALTH,
        row="model ready, version that is not decimal",
        call=case.rpc("ModelReady", pb.ModelReadyRequest(name="id_fp32", version="one")),
    )


def _server() -> Iterator[Case]:
    row = "server metadata"
    yield Case(id="http/server", section=_HEALTH, row=row, call=case.get("/v2"), masked=_SERVER)
    yield Case(id="grpc/server", section=_HEALTH, row=row, call=case.rpc("ServerMetadata", b""), masked=_SERVER)


def _metadata() -> Iterator[Case]:
    for model in _MODELS:
        yield Case(
            id=f"http/{model}",
            section=_HEALTH,
            row="model metadata",
            call=case.get(f"/v2/models/{model}"),
            masked=_BACKEND,
        )
        yield Case(
            id=f"grpc/{model}",
            section=_HEALTH,
            row="model metadata",
            call=case.rpc("ModelMetadata", pb.ModelMetadataRequest(name=model)),
            masked=_BACKEND,
        )
    yield Case(
        id="http/version",
        section=_HEALTH,
        row="model metadata of a version",
        call=case.get("/v2/models/versioned/versions/1"),
        masked=_BACKEND,
    )
    yield Case(
        id="grpc/version",
        section=_HEALTH,
        row="model metadata of a version",
        call=case.rpc("ModelMetadata", pb.ModelMetadataRequest(name="versioned", version="1")),
        masked=_BACKEND,
    )
    for name, (path, model, version) in _unknown().items():
        yield Case(
            id=f"http/{name}",
            section=_HEALTH,
            row="model metadata of an unknown model or version",
            call=case.get(f"/v2/models/{path}"),
        )
        yield Case(
            id=f"grpc/{name}",
            section=_HEALTH,
            row="model metadata of an unknown model or version",
            call=case.rpc("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version)),
        )


def _config() -> Iterator[Case]:
    for model in _MODELS:
        yield Case(
            id=f"http/{model}",
            section=_HEALTH,
            row="model configuration",
            call=case.get(f"/v2/models/{model}/config"),
            masked=_BACKEND,
        )
        yield Case(
            id=f"grpc/{model}",
            section=_HEALTH,
            row="model configuration",
            call=case.rpc("ModelConfig", pb.ModelConfigRequest(name=model)),
            masked=_BACKEND,
        )
    for name, (path, model, version) in _unknown().items():
        yield Case(
            id=f"http/{name}",
            section=_HEALTH,
            row="model configuration of an unknown model or version",
            call=case.get(f"/v2/models/{path}/config"),
        )
        yield Case(
            id=f"grpc/{name}",
            section=_HEALTH,
            row="model configuration of an unknown model or version",
            call=case.rpc("ModelConfig", pb.ModelConfigRequest(name=model, version=version)),
        )


def _unknown() -> dict[str, tuple[str, str, str]]:
    """By name: path, model and version."""
    return {
        "unknown": ("absent", "absent", ""),
        "untouched": ("untouched", "untouched", ""),
        "version-unknown": ("versioned/versions/7", "versioned", "7"),
    }

"""Restricted APIs: section 3.3 of the contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from protos.inference.v2 import predict_pb2 as pb
from tests.conformance import case, tensors
from tests.conformance.case import Case
from tests.conformance.tensors import ONE, RAW_ONE, body

_SECTION = "Restricted APIs"
_KEY = "triton-grpc-protocol-"


def cases() -> Iterator[Case]:
    yield from case.named("restricted", [*_named(), *_all()])


def _named() -> Iterator[Case]:
    keys: tuple[tuple[str, str, Mapping[str, str]], ...] = (
        ("none", "without the header", {}),
        ("wrong", "with a wrong header", {"admin-key": "guess"}),
        ("right", "with the header", {"admin-key": "secret"}),
    )
    for name, row, headers in keys:
        calls = (
            ("index", "repository index", case.post("/v2/repository/index", b"", headers), "RepositoryIndex", b""),
            (
                "statistics",
                "statistics",
                case.http("GET", "/v2/models/absent/stats", b"", headers),
                "ModelStatistics",
                pb.ModelStatisticsRequest(name="absent"),
            ),
        )
        for what, words, http, method, message in calls:
            yield Case(
                id=f"http/{what}-{name}",
                section=_SECTION,
                row=f"{words} {row}",
                call=http,
                setup="restricted",
            )
            metadata = tuple((_KEY + key, value) for key, value in headers.items())
            yield Case(
                id=f"grpc/{what}-{name}",
                section=_SECTION,
                row=f"{words} {row}",
                call=case.rpc(method, message, metadata=metadata),
                setup="restricted",
            )
    yield Case(
        id="http/open",
        section=_SECTION,
        row="what is not restricted",
        call=tensors.ask("id_fp32", body([ONE])),
        setup="restricted",
    )
    yield Case(
        id="grpc/open",
        section=_SECTION,
        row="what is not restricted",
        call=tensors.infer("id_fp32", [RAW_ONE]),
        setup="restricted",
    )


def _all() -> Iterator[Case]:
    calls = (
        ("health", case.get("/v2/health/live"), case.rpc("ServerLive", b"")),
        (
            "metadata",
            case.get("/v2/models/id_fp32/versions/9"),
            case.rpc("ModelMetadata", pb.ModelMetadataRequest(name="x")),
        ),
        ("inference", tensors.ask("id_fp32", body([ONE])), tensors.infer("id_fp32", [RAW_ONE])),
        ("shared-memory", case.get("/v2/systemsharedmemory/status"), case.rpc("SystemSharedMemoryStatus", b"")),
        (
            "model-config",
            case.get("/v2/models/absent/config"),
            case.rpc("ModelConfig", pb.ModelConfigRequest(name="x")),
        ),
        ("trace", case.get("/v2/trace/setting"), case.rpc("TraceSetting", b"")),
        ("logging", case.get("/v2/logging"), case.rpc("LogSettings", b"")),
    )
    for name, http, rpc in calls:
        row = f"{name} without the header"
        yield Case(id=f"http/{name}", section=_SECTION, row=row, call=http, setup="restricted-all")
        yield Case(id=f"grpc/{name}", section=_SECTION, row=row, call=rpc, setup="restricted-all")
    message = tensors.request("id_fp32", [RAW_ONE])
    yield Case(
        id="grpc/stream",
        section=_SECTION,
        row="a stream without the header",
        call=case.rpc("ModelStreamInfer", message),
        setup="restricted-all",
    )
    yield Case(
        id="http/inference-right",
        section=_SECTION,
        row="inference with the header",
        call=tensors.ask("id_fp32", body([ONE]), headers={"key": "open"}),
        setup="restricted-all",
    )
    yield Case(
        id="grpc/inference-right",
        section=_SECTION,
        row="inference with the header",
        call=case.rpc("ModelInfer", message, metadata=((f"{_KEY}key", "open"),)),
        setup="restricted-all",
    )

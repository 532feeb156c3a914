"""The paths of V2 over REST: which target means which endpoint, for which model and version.

Pure. Must never look at a request's body or headers.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import urllib.parse
from collections.abc import Sequence

import httptools


class Endpoint(enum.Enum):
    """What a path asks for, in words."""

    LIVE = "live"
    READY = "ready"
    SERVER = "server metadata"
    MODEL = "model metadata"
    MODEL_READY = "model ready"
    INFER = "infer"
    CONFIG = "model configuration"
    STATISTICS = "statistics"
    INDEX = "repository index"
    LOAD = "load"
    UNLOAD = "unload"
    LEAVE = "leave"
    METRICS = "metrics"
    GENERATE = "generate"
    GENERATE_STREAM = "generate_stream"
    TRACE = "trace settings"
    LOGGING = "log settings"
    SYSTEM_REGIONS = "system shared memory status"
    SYSTEM_REGISTER = "system shared memory register"
    SYSTEM_UNREGISTER = "system shared memory unregister"
    CUDA_REGIONS = "CUDA shared memory status"
    CUDA_REGISTER = "CUDA shared memory register"
    CUDA_UNREGISTER = "CUDA shared memory unregister"
    NAMED_REPOSITORY = "naming of a repository"


INFERRING = frozenset((Endpoint.INFER, Endpoint.GENERATE, Endpoint.GENERATE_STREAM))
"""Endpoints that ask a model: they run side by side, and their clients follow the model elsewhere."""

APIS = {
    **dict.fromkeys((Endpoint.LIVE, Endpoint.READY, Endpoint.MODEL_READY), "health"),
    **dict.fromkeys((Endpoint.SERVER, Endpoint.MODEL), "metadata"),
    **dict.fromkeys(INFERRING, "inference"),
    **dict.fromkeys((Endpoint.SYSTEM_REGIONS, Endpoint.SYSTEM_REGISTER, Endpoint.SYSTEM_UNREGISTER), "shared-memory"),
    **dict.fromkeys((Endpoint.CUDA_REGIONS, Endpoint.CUDA_REGISTER, Endpoint.CUDA_UNREGISTER), "shared-memory"),
    Endpoint.CONFIG: "model-config",
    **dict.fromkeys((Endpoint.INDEX, Endpoint.LOAD, Endpoint.UNLOAD, Endpoint.LEAVE), "model-repository"),
    Endpoint.NAMED_REPOSITORY: "model-repository",
    Endpoint.STATISTICS: "statistics",
    Endpoint.TRACE: "trace",
    Endpoint.LOGGING: "logging",
}
"""The group that each endpoint can be restricted with."""

UNSERVED = frozenset((Endpoint.NAMED_REPOSITORY,))
"""Known paths that are answered with an error which says so."""

_GET = (b"GET",)
_POST = (b"POST",)
_BOTH = (b"GET", b"POST")

# A pattern's {model}, {version}, {region} and {any} match one segment; the first pattern that matches wins.
_API = (
    (_GET, "v2", Endpoint.SERVER),
    (_GET, "v2/health/live", Endpoint.LIVE),
    (_GET, "v2/health/ready", Endpoint.READY),
    (_GET, "v2/models/stats", Endpoint.STATISTICS),
    (_GET, "v2/models/{model}", Endpoint.MODEL),
    (_GET, "v2/models/{model}/versions/{version}", Endpoint.MODEL),
    (_GET, "v2/models/{model}/ready", Endpoint.MODEL_READY),
    (_GET, "v2/models/{model}/versions/{version}/ready", Endpoint.MODEL_READY),
    (_POST, "v2/models/{model}/infer", Endpoint.INFER),
    (_POST, "v2/models/{model}/versions/{version}/infer", Endpoint.INFER),
    (_GET, "v2/models/{model}/config", Endpoint.CONFIG),
    (_GET, "v2/models/{model}/versions/{version}/config", Endpoint.CONFIG),
    (_GET, "v2/models/{model}/stats", Endpoint.STATISTICS),
    (_GET, "v2/models/{model}/versions/{version}/stats", Endpoint.STATISTICS),
    (_POST, "v2/repository/index", Endpoint.INDEX),
    (_POST, "v2/repository/models/{model}/load", Endpoint.LOAD),
    (_POST, "v2/repository/models/{model}/unload", Endpoint.UNLOAD),
    # Our own: clients of a model, or all, are to go elsewhere.
    (_POST, "v2/repository/leave", Endpoint.LEAVE),
    (_POST, "v2/repository/models/{model}/leave", Endpoint.LEAVE),
    (_POST, "v2/repository/{any}/index", Endpoint.NAMED_REPOSITORY),
    (_POST, "v2/repository/{any}/models/{model}/load", Endpoint.NAMED_REPOSITORY),
    (_POST, "v2/repository/{any}/models/{model}/unload", Endpoint.NAMED_REPOSITORY),
    (_POST, "v2/models/{model}/generate", Endpoint.GENERATE),
    (_POST, "v2/models/{model}/versions/{version}/generate", Endpoint.GENERATE),
    (_POST, "v2/models/{model}/generate_stream", Endpoint.GENERATE_STREAM),
    (_POST, "v2/models/{model}/versions/{version}/generate_stream", Endpoint.GENERATE_STREAM),
    (_BOTH, "v2/trace/setting", Endpoint.TRACE),
    (_BOTH, "v2/models/{model}/trace/setting", Endpoint.TRACE),
    (_BOTH, "v2/logging", Endpoint.LOGGING),
    *(
        pattern
        for kind, status, register, unregister in (
            ("system", Endpoint.SYSTEM_REGIONS, Endpoint.SYSTEM_REGISTER, Endpoint.SYSTEM_UNREGISTER),
            ("cuda", Endpoint.CUDA_REGIONS, Endpoint.CUDA_REGISTER, Endpoint.CUDA_UNREGISTER),
        )
        for pattern in (
            (_GET, f"v2/{kind}sharedmemory/status", status),
            (_GET, f"v2/{kind}sharedmemory/region/{{region}}/status", status),
            (_POST, f"v2/{kind}sharedmemory/region/{{region}}/register", register),
            (_POST, f"v2/{kind}sharedmemory/unregister", unregister),
            (_POST, f"v2/{kind}sharedmemory/region/{{region}}/unregister", unregister),
        )
    ),
)
PATTERNS: Sequence[tuple[Sequence[bytes], str, Endpoint]] = _API
"""Methods, path and endpoint of every route of the V2 API, for those who describe it."""

# Longer targets are not remembered: clients choose them.
_MOST_KNOWN_BYTES = 2**10
_METRICS = ((_GET, "metrics", Endpoint.METRICS),)


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """An endpoint and what its path names; model, version and region are empty where the path has none."""

    endpoint: Endpoint
    verbs: tuple[bytes, ...]
    model: str = ""
    version: str = ""
    region: str = ""


def api(target: bytes) -> Route | None:
    """The route of a request target of the V2 API."""
    return _known(target) if len(target) <= _MOST_KNOWN_BYTES else _match(target, _API)


@functools.lru_cache(maxsize=4096)
def _known(target: bytes) -> Route | None:
    return _match(target, _API)


@functools.lru_cache(maxsize=64)
def metrics(target: bytes) -> Route | None:
    """The route of a request target of the metrics port."""
    return _match(target, _METRICS)


def _match(target: bytes, patterns: tuple[tuple[tuple[bytes, ...], str, Endpoint], ...]) -> Route | None:
    segments = _path(target).split("/")
    if len(segments) < 2 or segments.pop(0):
        return None
    for verbs, pattern, endpoint in patterns:
        names = _capture(pattern.split("/"), segments)
        if names is not None:
            return Route(endpoint, verbs, *(names.get(key, "") for key in ("{model}", "{version}", "{region}")))
    return None


def _path(target: bytes) -> str:
    """The path of an origin-form or absolute-form target; empty for anything else."""
    if not target.startswith(b"/"):
        try:
            target = httptools.parse_url(target).path or b""
        except httptools.HttpParserInvalidURLError:
            return ""
    return target.partition(b"?")[0].partition(b"#")[0].decode(errors="replace")


def _capture(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    names = {}
    for want, segment in zip(pattern, segments, strict=True):
        if want == "{version}" and not (segment.isascii() and segment.isdigit()):
            return None
        if want.startswith("{"):
            names[want] = urllib.parse.unquote(segment)
        elif want != segment:
            return None
    return None if "" in names.values() else names

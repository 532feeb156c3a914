"""What the sidecar speaks of, as frozen values without wire or I/O.

Decides which differences make two models different (`ModelKey`): the served name, the bytes of the source and the
configuration override. Must never put a credential into a comparison, a log or a file.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from typing import TypeVar


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a model; `path` is relative with forward slashes, `sha256` is empty until learnt."""

    path: str
    size_bytes: int
    version: str = ""
    sha256: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class S3Access:
    """How to reach an S3 source. Lives in memory only."""

    endpoint_url: str = ""
    region: str = ""
    path_style: bool = False
    access_key_id: str = ""
    secret_access_key: str = dataclasses.field(default="", repr=False)
    session_token: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpAccess:
    """How to reach an HTTP source: an empty Authorization header is none. Lives in memory only."""

    authorization: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GcsAccess:
    """How to reach a Google Cloud Storage source; without a token as anybody may. Lives in memory only."""

    endpoint_url: str = ""
    bearer_token: str = dataclasses.field(default="", repr=False)


Access = S3Access | HttpAccess | GcsAccess
AnyAccess = TypeVar("AnyAccess", S3Access, HttpAccess, GcsAccess)


class Layout(enum.Enum):
    """What the URI of a model names."""

    TREE = "tree"  # a directory: each file lies at its path below the URI
    FILE = "file"  # the one file itself, wherever it goes in the model's directory
    ARCHIVE = "archive"  # an archive, the one file, that holds the model's directory


@dataclasses.dataclass(frozen=True, slots=True)
class ModelKey:
    """What is loaded under a name; two equal keys mean the same bytes and configuration."""

    name: str
    source_digest: str
    config_digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model that the worker should hold."""

    name: str
    uri: str
    files: tuple[SourceFile, ...]
    source_digest: str
    framework: str = ""
    config_override: str = ""
    layout: Layout = Layout.TREE
    access: Access | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def key(self) -> ModelKey:
        return ModelKey(self.name, self.source_digest, self.config_digest)

    @property
    def config_digest(self) -> str:
        """sha256 of the override, empty without one."""
        return hashlib.sha256(self.config_override.encode()).hexdigest() if self.config_override else ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and its V2 ports; a port of 0 is not offered."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int


@dataclasses.dataclass(frozen=True, slots=True)
class Serving:
    """An address that takes connections while all the models it names are ready."""

    endpoint: Endpoint
    models: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """All that the worker should hold; models are loaded in this order. `routed`: clients are led here."""

    epoch: int = 0
    generation: int = 0
    models: tuple[Model, ...] = ()
    servings: tuple[Serving, ...] = ()
    report_interval_s: float = 2.0
    routed: bool = False

    @property
    def version(self) -> tuple[int, int]:
        """Later ones are greater."""
        return self.epoch, self.generation

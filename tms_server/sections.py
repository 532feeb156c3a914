"""The sections of the settings: what an administrator decides about each part of the server.

Every setting has a default. Decides which combinations make sense; reads nothing.
"""

from __future__ import annotations

import pathlib
from typing import Literal

import pydantic
from pydantic import Field


class Section(pydantic.BaseModel):
    """A part of the tree."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Api(Section):
    """The gRPC listener."""

    address: str = Field(default="127.0.0.1", description="address that the gRPC API listens on")
    port: int = Field(default=30345, ge=0, le=65535, description="its port; 0 takes a free one")
    stop_grace_s: float = Field(
        default=5.0, ge=0, le=600, description="seconds that calls in flight have when the server stops"
    )
    allow_plain: bool = Field(
        default=False,
        description="listen without TLS beyond this machine, although tokens and models then travel in the clear",
    )
    dial_host: str = Field(
        default="", description="host that sidecars dial; empty: the address, or 127.0.0.1 where it is all"
    )


class MetricsListener(Section):
    """The HTTP listener for Prometheus."""

    enabled: bool = Field(default=True, description="serve Prometheus metrics")
    address: str = Field(default="127.0.0.1", description="address that the metrics listen on")
    port: int = Field(default=30346, ge=0, le=65535, description="its port; 0 takes a free one")


class Tls(Section):
    """TLS of both listeners; mutual with `client_ca`."""

    managed: bool = Field(
        default=False, description="make a CA and certificates, keep them in Kubernetes and renew them; no files needed"
    )
    names: tuple[str, ...] = Field(
        default=(), description="further names and addresses that clients dial, for managed certificates"
    )
    certificate: pathlib.Path | None = Field(default=None, description="PEM file of the server's certificate chain")
    key: pathlib.Path | None = Field(default=None, description="PEM file of its key")
    ca: pathlib.Path | None = Field(
        default=None, description="PEM file of the CA that signed it, given to the sidecars"
    )
    client_ca: pathlib.Path | None = Field(
        default=None, description="PEM file of the CA that every client must be signed by"
    )
    sidecar_certificate: pathlib.Path | None = Field(
        default=None, description="PEM file that sidecars show, for mutual TLS"
    )
    sidecar_key: pathlib.Path | None = Field(default=None, description="PEM file of its key")

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or none")
        if self.certificate is not None and self.ca is None:
            raise ValueError("ca is needed with certificate: sidecars check the server against it")
        if self.client_ca is not None and (self.sidecar_certificate is None or self.sidecar_key is None):
            raise ValueError("sidecar_certificate and sidecar_key are needed with client_ca")
        if self.certificate is None and self.client_ca is not None:
            raise ValueError("client_ca needs certificate and key")
        if self.names and not self.managed:
            raise ValueError("names are for managed certificates: set managed, or leave them out")
        if self.managed and self.certificate is not None:
            raise ValueError("managed and certificate exclude each other: give files, or let the server make them")
        return self


class Workers(Section):
    """Workers as local processes."""

    commands: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="allow-list of further commands: name and argument template"
    )
    memory_bytes: int = Field(
        default=4 * 2**30, gt=0, description="bytes that models may book on a worker that asks for none"
    )
    margin_bytes: int = Field(default=0, ge=0, description="bytes kept free of models on each worker")
    cache_bytes: int = Field(
        default=0, ge=0, description="bytes of the disk that the cache of models may take; 0: what the disk has"
    )
    gpus: tuple[str, ...] = Field(default=(), description="uuids of the devices that workers may hold")
    environment: dict[str, str] = Field(
        default_factory=dict, description="further variables of workers and their sidecars"
    )
    stop_grace_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds between SIGTERM and SIGKILL of a worker"
    )


class Pool(Section):
    """A pool that the server keeps: made at start, brought to what is said here; NAMESPACE/NAME, or NAME alone."""

    command: str = Field(
        default="", description="name of the command, or program, that its workers run; empty: tms-worker"
    )
    image: str = Field(default="", description="image that its workers run; empty: kubernetes.worker_image")
    profile: str = Field(default="", description="pod shape of its workers; empty: default")
    cpu_milli: int = Field(default=0, ge=0, description="thousandths of a processor of a worker")
    min_workers: int = Field(default=0, ge=0, le=10_000, description="workers kept even when empty")
    max_workers: int = Field(default=4, ge=1, le=10_000, description="most workers")
    memory_bytes: int = Field(
        default=0, ge=0, description="bytes that models may book on a worker; 0: workers.memory_bytes"
    )
    gpus: int = Field(default=0, ge=0, description="whole devices of a worker")
    idle_worker_linger_s: float = Field(default=0.0, ge=0, description="seconds that an empty worker is kept")

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> Pool:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers: at most max_workers, {self.max_workers}")
        if self.command and self.image:
            raise ValueError("image: give an image or a command, not both")
        return self


class DefaultPool(Pool):
    """The pool "default" of the namespace "default"."""

    enabled: bool = Field(default=True, description="keep the pool: made at start, brought to what is said here")


class LeaseTimes(Section):
    """Times of a lease that does not say its own."""

    hold_s: float = Field(default=600.0, ge=0, description="seconds of least life")
    activity_window_s: float = Field(default=600.0, ge=1, description="seconds for which an inference keeps a lease")
    pending_timeout_s: float = Field(default=3600.0, gt=0, description="seconds that a lease may wait to become ACTIVE")
    max_lifetime_s: float = Field(default=0.0, ge=0, description="seconds of longest life; 0: no limit")


class Keys(Section):
    """Credentials of an S3 repository, each as a value, a variable's name or a file."""

    access_key_id: pydantic.SecretStr = Field(default=pydantic.SecretStr(""), description="the id itself")
    secret_access_key: pydantic.SecretStr = Field(default=pydantic.SecretStr(""), description="the secret itself")
    session_token: pydantic.SecretStr = Field(default=pydantic.SecretStr(""), description="the session token itself")
    source: Literal["anonymous", "static", "environment", "files"] = Field(
        default="anonymous", description="where keys are"
    )
    directory: pathlib.Path | None = Field(
        default=None, description="folder of files named as these keys, for source files"
    )


class Repository(Section):
    """A place that models come from: a folder, a bucket, or what is below a URL."""

    path: pathlib.Path | None = Field(default=None, description="folder that holds models")
    claim: str = Field(default="", description="claim that is mounted at path, to be read, in the pods of workers")
    host_path: str = Field(default="", description="folder of the nodes that is mounted there instead of a claim")
    bucket: str = Field(default="", description="name of an S3 bucket")
    gcs_bucket: str = Field(default="", description="name of a bucket of Google Cloud Storage")
    prefix: str = Field(default="", description="what the models of a bucket lie below")
    endpoint_url: str = Field(default="", description="endpoint of the bucket's store; empty: AWS, or Google")
    url: str = Field(
        default="", pattern=r"^(https?://[^/?#@\s]+(/[^?#\s]*)?)?$", description="URL that models lie below"
    )
    secret_file: pathlib.Path | None = Field(
        default=None, description="file of the Authorization header for url, or of the OAuth token for gcs_bucket"
    )
    region: str = Field(default="us-east-1", description="region of the bucket")
    path_style: bool = Field(default=False, description="address the bucket in the path")
    keys: Keys = Field(default=Keys(), description="credentials")

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> Repository:
        if [self.path is not None, bool(self.bucket), bool(self.gcs_bucket), bool(self.url)].count(True) != 1:
            raise ValueError("give either path, bucket, gcs_bucket or url")
        if self.secret_file is not None and not (self.url or self.gcs_bucket):
            raise ValueError("secret_file: needs url or gcs_bucket; the keys of an S3 bucket are keys.*")
        if self.keys.source == "files" and self.keys.directory is None:
            raise ValueError("keys.directory is needed where keys.source is files")
        return self

    @pydantic.model_validator(mode="after")
    def _one_volume(self) -> Repository:
        if self.volume and self.path is None:
            raise ValueError("claim and host_path are mounted at path: give path too")
        if self.claim and self.host_path:
            raise ValueError("give either claim or host_path")
        if self.host_path and not self.host_path.startswith("/"):
            raise ValueError("host_path: give an absolute folder")
        return self

    @property
    def volume(self) -> str:
        """What is mounted at path in pods; empty where nothing is."""
        return self.claim or self.host_path


class Timing(Section):
    """Times of the server itself."""

    report_interval_s: float = Field(default=1.0, ge=0.05, le=60, description="seconds between reports of a sidecar")
    lost_after_s: float = Field(
        default=10.0, ge=0.1, description="seconds after which a sidecar that is gone has lost its worker"
    )
    heartbeat_s: float = Field(default=2.0, ge=0.1, le=60, description="seconds between marks of life in the database")
    resolve_bound_s: float = Field(
        default=3.0, gt=0, le=60, description="seconds that Create waits for a model repository"
    )
    lead_ttl_s: float = Field(
        default=12.0, ge=1, le=300, description="seconds after which another server takes over from one that is gone"
    )
    retention_days: float = Field(default=30.0, gt=0, description="days that ended leases and their history are kept")


class Log(Section):
    """Logs, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is written"
    )

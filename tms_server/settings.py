"""All that an administrator can decide: one frozen tree, read once from flags, environment and file, in that order.

Every setting has a default, so that the server runs without a file. An unknown key or a value that cannot be meant is an
error that names the key. Secrets are never printed.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import pathlib
import tomllib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pydantic
import pydantic_core
import pydantic_settings
from pydantic import Field

PREFIX = "TMS_"
CONFIG_VARIABLE = "TMS_CONFIG"


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
    gpus: tuple[str, ...] = Field(default=(), description="uuids of the devices that workers may hold")
    stop_grace_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds between SIGTERM and SIGKILL of a worker"
    )


class DefaultPool(Section):
    """The pool "default" of the namespace "default"."""

    enabled: bool = Field(default=True, description="keep the pool: made at start, brought to what is said here")
    command: str = Field(default="tms-worker", description="name of the command that its workers run")
    min_workers: int = Field(default=0, ge=0, le=10_000, description="workers kept even when empty")
    max_workers: int = Field(default=4, ge=1, le=10_000, description="most workers")
    memory_bytes: int = Field(
        default=0, ge=0, description="bytes that models may book on a worker; 0: workers.memory_bytes"
    )
    gpus: int = Field(default=0, ge=0, description="whole devices of a worker")
    idle_worker_linger_s: float = Field(default=0.0, ge=0, description="seconds that an empty worker is kept")


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
    """A place that models come from: a folder, or a bucket."""

    path: pathlib.Path | None = Field(default=None, description="folder that holds models")
    bucket: str = Field(default="", description="name of an S3 bucket")
    prefix: str = Field(default="", description="what its models lie below")
    endpoint_url: str = Field(default="", description="endpoint of the store; empty: AWS")
    region: str = Field(default="us-east-1", description="region of the bucket")
    path_style: bool = Field(default=False, description="address the bucket in the path")
    keys: Keys = Field(default=Keys(), description="credentials")

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> Repository:
        if (self.path is None) == (not self.bucket):
            raise ValueError("give either path or bucket")
        if self.keys.source == "files" and self.keys.directory is None:
            raise ValueError("keys.directory is needed where keys.source is files")
        return self


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
    retention_days: float = Field(default=30.0, gt=0, description="days that ended leases and their history are kept")


class Log(Section):
    """Logs, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is written"
    )


def _default_data_dir() -> pathlib.Path:
    home = os.environ.get("XDG_DATA_HOME") or str(pathlib.Path.home() / ".local" / "share")
    return pathlib.Path(home) / "tms"


class Settings(pydantic_settings.BaseSettings):
    """The whole tree."""

    model_config = pydantic_settings.SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__"
    )

    data_dir: pathlib.Path = Field(default_factory=_default_data_dir, description="folder of all state")
    database_url: str = Field(default="", description="database as sqlite:///PATH; empty: tms.db in data_dir")
    ready_file: pathlib.Path | None = Field(default=None, description="file written, as JSON, once the server answers")
    stop_workers_at_exit: bool = Field(
        default=False, description="stop the workers with the server instead of leaving them"
    )
    repositories: dict[str, Repository] = Field(default_factory=dict, description="model repositories by name")
    api: Api = Api()
    metrics: MetricsListener = MetricsListener()
    tls: Tls = Tls()
    workers: Workers = Workers()
    default_pool: DefaultPool = DefaultPool()
    timing: Timing = Timing()
    log: Log = Log()

    @pydantic.field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: pathlib.Path) -> pathlib.Path:
        return value.expanduser().absolute()

    @pydantic.model_validator(mode="after")
    def _no_secrets_in_the_clear(self) -> Settings:
        if self.tls.certificate is not None or self.api.allow_plain:
            return self
        for name, address in (("api.address", self.api.address), ("metrics.address", self.metrics.address)):
            if not _is_loopback(address):
                raise ValueError(
                    f"{name}: {address} is beyond this machine: set tls.*, or api.allow_plain to do without"
                )
        return self

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.database_url or f"sqlite:///{self.data_dir / 'tms.db'}"

    @property
    def dial_host(self) -> str:
        """Host that sidecars dial."""
        if self.api.dial_host:
            return self.api.dial_host
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.api.address, self.api.address)  # noqa: S104 - the wildcard is mapped, not bound


class SettingsError(Exception):
    """The settings cannot be meant; one line for each key."""


def load(flags: Mapping[str, Any], file: pathlib.Path | None) -> Settings:
    """The settings: flags (nested by section) win over the environment, the environment over the TOML file."""
    from_file = _read(file) if file is not None else {}

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[pydantic_settings.BaseSettings],
            init_settings: pydantic_settings.PydanticBaseSettingsSource,
            env_settings: pydantic_settings.PydanticBaseSettingsSource,
            dotenv_settings: pydantic_settings.PydanticBaseSettingsSource,
            file_secret_settings: pydantic_settings.PydanticBaseSettingsSource,
        ) -> tuple[pydantic_settings.PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            file_settings = pydantic_settings.InitSettingsSource(settings_cls, from_file)
            return init_settings, env_settings, file_settings

    try:
        return Loaded(**flags)
    except pydantic.ValidationError as error:
        raise SettingsError("\n".join(_line(each) for each in error.errors())) from None
    except pydantic_settings.SettingsError as error:
        raise SettingsError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    """Flags of the server: a few of its own, and one for each plain setting."""
    made = argparse.ArgumentParser(
        prog="tms-server",
        usage="tms-server [OPTIONS]",
        description="The TMS control plane. Runs without any setting: SQLite and workers as local processes.",
        epilog=f"Every setting can be given as a flag, as a variable ({PREFIX}API__PORT) or in the TOML file ([api] "
        "port); flags win over variables, variables over the file.",
    )
    made.add_argument("--config", type=pathlib.Path, metavar="FILE", help=f"TOML file of settings ({CONFIG_VARIABLE})")
    made.add_argument("--print-config", action="store_true", help="print the settings as they are read, and exit")
    made.add_argument(
        "--repository",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="model repository: a folder, or s3://BUCKET/PREFIX with keys from the environment; may be repeated",
    )
    groups = {"": made.add_argument_group("places")}
    for key, field in leaves():
        section = key.rpartition(".")[0]
        if section not in groups:
            told = (getattr(Settings.model_fields[section].annotation, "__doc__", "") or "").strip()
            groups[section] = made.add_argument_group(section.replace("_", " "), told)
        _add_flag(groups[section], key, field)
    return made


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """The settings that parsed flags, the environment and the file give."""
    flags: dict[str, Any] = {}
    for key, _ in leaves():
        value = getattr(arguments, key)
        if value is not None:
            _put(flags, key, value)
    if arguments.repository:
        flags["repositories"] = dict(map(_repository, arguments.repository))
    file = arguments.config or os.environ.get(CONFIG_VARIABLE)
    return load(flags, pathlib.Path(file) if file else None)


def leaves() -> Iterator[tuple[str, pydantic.fields.FieldInfo]]:
    """Every plain setting with its dotted key."""
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from ((f"{name}.{inner}", each) for inner, each in annotation.model_fields.items() if _is_plain(each))
        elif _is_plain(field):
            yield name, field


def _is_plain(field: pydantic.fields.FieldInfo) -> bool:
    return typing.get_origin(field.annotation) not in (dict, tuple)


def _add_flag(made: argparse._ArgumentGroup, key: str, field: pydantic.fields.FieldInfo) -> None:
    flag = "--" + key.replace(".", "-").replace("_", "-")
    default = field.get_default(call_default_factory=False)
    told = field.description or ""
    if default not in (None, "", pydantic_core.PydanticUndefined):
        told += f" (default {str(default).lower() if isinstance(default, bool) else default})"
    told = told.replace("%", "%%")
    if field.annotation is bool:
        made.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, default=None, help=told)
    else:
        made.add_argument(flag, dest=key, metavar=key.rpartition(".")[2].upper(), default=None, help=told)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    (tree.setdefault(section, {}) if section else tree)[name] = value


def _repository(text: str) -> tuple[str, dict[str, Any]]:
    name, equals, place = text.partition("=")
    if not equals or not name or not place:
        raise SettingsError(f"repository: {text!r} is not NAME=PATH")
    if place.startswith("s3://"):
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        return name, {"bucket": bucket, "prefix": prefix, "keys": {"source": "environment"}}
    return name, {"path": pathlib.Path(place).expanduser().absolute()}


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise SettingsError(f"config: {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"config: {file} is not TOML: {error}") from error


def _line(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    said = "unknown setting" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    return f"{key}: {said}" if key else said


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False

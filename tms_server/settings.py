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

from tms_server import pods, sections
from tms_server.leases import validate
from tms_server.model import errors

PREFIX = "TMS_"
CONFIG_VARIABLE = "TMS_CONFIG"


def _default_data_dir() -> pathlib.Path:
    home = os.environ.get("XDG_DATA_HOME") or str(pathlib.Path.home() / ".local" / "share")
    return pathlib.Path(home) / "tms"


class Settings(pydantic_settings.BaseSettings):
    """The whole tree."""

    model_config = pydantic_settings.SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__"
    )

    data_dir: pathlib.Path = Field(default_factory=_default_data_dir, description="folder of all state")
    database_url: str = Field(
        default="",
        repr=False,
        description="database as sqlite:///PATH, or postgresql://USER:PASSWORD@HOST/NAME for several servers; "
        "empty: tms.db in data_dir",
    )
    ready_file: pathlib.Path | None = Field(default=None, description="file written, as JSON, once the server answers")
    stop_workers_at_exit: bool = Field(
        default=False, description="stop the workers with the server instead of leaving them"
    )
    backend: Literal["processes", "kubernetes"] = Field(
        default="processes", description="what runs workers: processes of this machine, or pods"
    )
    migrate_at_start: bool = Field(
        default=True, description="bring the database to this version at start; else refuse to start on an older one"
    )
    images: tuple[str, ...] = Field(
        default=(), description="images that leases and pools may ask for beside the default; each may end in *"
    )
    repositories: dict[str, sections.Repository] = Field(default_factory=dict, description="model repositories by name")
    pools: dict[str, sections.Pool] = Field(default_factory=dict, description="further pools that the server keeps")
    api: sections.Api = sections.Api()
    metrics: sections.MetricsListener = sections.MetricsListener()
    tls: sections.Tls = sections.Tls()
    workers: sections.Workers = sections.Workers()
    kubernetes: pods.Kubernetes = pods.Kubernetes()
    metrics_api: pods.MetricsApi = pods.MetricsApi()
    default_pool: sections.DefaultPool = sections.DefaultPool()
    lease_times: sections.LeaseTimes = sections.LeaseTimes()
    timing: sections.Timing = sections.Timing()
    log: sections.Log = sections.Log()

    @pydantic.field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: pathlib.Path) -> pathlib.Path:
        return value.expanduser().absolute()

    @pydantic.field_validator("images")
    @classmethod
    def _images_are_rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            try:
                validate.image_pattern("images", each)
            except errors.InvalidField as wrong:
                raise ValueError(f"{each!r} is no rule: {wrong.remedy}") from None
        return value

    @pydantic.field_serializer("database_url")
    def _without_password(self, value: str) -> str:
        if not value.startswith("postgres"):
            return value
        scheme, _, rest = value.partition("://")
        account, at, place = rest.rpartition("@")
        place, mark, query = place.partition("?")
        kept = [each for each in query.split("&") if "password" not in each.partition("=")[0]]
        return f"{scheme}://{account.partition(':')[0]}{at}{place}{mark}{'&'.join(kept)}"

    @pydantic.model_validator(mode="after")
    def _no_secrets_in_the_clear(self) -> Settings:
        if self.tls.certificate is not None or self.tls.managed or self.api.allow_plain:
            return self
        for name, address in (("api.address", self.api.address), ("metrics.address", self.metrics.address)):
            if not _is_loopback(address):
                raise ValueError(
                    f"{name}: {address} is beyond this machine: set tls.*, or api.allow_plain to do without"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _pods_have_images(self) -> Settings:
        if self.backend != "kubernetes":
            if self.tls.managed:
                raise ValueError("tls.managed: certificates are kept in Kubernetes; it needs backend = kubernetes")
            for name, repository in self.repositories.items():
                if repository.volume:
                    raise ValueError(
                        f"repositories.{name}: claim and host_path need backend = kubernetes; give path alone"
                    )
            return self
        for name in ("worker_image", "sidecar_image"):
            if not getattr(self.kubernetes, name):
                raise ValueError(f"kubernetes.{name}: name the image; with backend = kubernetes it has no default")
        return self

    @pydantic.model_validator(mode="after")
    def _pods_can_be_made(self) -> Settings:
        if self.backend != "kubernetes":
            return self
        if self.tls.client_ca is not None:
            raise ValueError("tls.client_ca: sidecars in pods get no certificates of their own; do without")
        profiles = {"", "default", *self.kubernetes.profiles}
        programs = {"", "tms-worker", *self.kubernetes.programs}
        declared = {"default_pool": self.default_pool, **{f"pools.{name}": each for name, each in self.pools.items()}}
        for name, each in declared.items():
            if each.profile not in profiles:
                raise ValueError(f"{name}.profile: {each.profile!r} is not one of kubernetes.profiles")
            if each.command not in programs:
                raise ValueError(f"{name}.command: {each.command!r} is not one of kubernetes.programs")
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
        help="model repository: a folder, a URL, gs://BUCKET/PREFIX as anybody may read it, or s3://BUCKET/PREFIX with keys from "
        "the environment; may be repeated",
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
        if isinstance(annotation, type) and issubclass(annotation, sections.Section):
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
    if place.startswith("gs://"):
        bucket, _, prefix = place.removeprefix("gs://").partition("/")
        return name, {"gcs_bucket": bucket, "prefix": prefix}
    if place.startswith(("http://", "https://")):
        return name, {"url": place}
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

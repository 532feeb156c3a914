"""The sidecar's settings, from flags and environment, parsed once.

Decides what is a usable setting; an error names the flag, the variable and the remedy.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
import pydantic_settings

from sidecar import access, values

PREFIX = "TMS_SIDECAR_"
METAVARS = {
    "server": "HOST:PORT",
    "worker-id": "ID",
    "replica-id": "NAME",
    "token-file": "FILE",
    "worker-endpoint": "HOST:HTTP:GRPC:METRICS",
    "worker-headers-file": "FILE",
    "worker-headers": "NAME=VALUE",
    "model-repository": "DIR",
    "data-dir": "DIR",
    "cache-dir": "DIR",
    "cache-budget": "BYTES",
    "fetch-limit": "N",
    "fetch-limit-per-repository": "N",
    "health-address": "ADDRESS",
    "health-port": "PORT",
    "model-stay": "S",
    "wedged-after": "S",
    "drain-timeout": "S",
    "server-ca": "FILE",
    "server-cert": "FILE",
    "server-key": "FILE",
    "log-level": "LEVEL",
}
"""What --help calls the values of flags."""


class Settings(pydantic_settings.BaseSettings):
    """The agent beside a model server: fetches models, loads them, forwards to them and reports to tms-server.

    Every flag can also be given by environment as TMS_SIDECAR_<FLAG>. It exits 0 on SIGTERM, 2 on bad flags, and 3 when
    the server says that this worker is not wanted any more.
    """

    model_config = pydantic_settings.SettingsConfigDict(
        env_prefix=PREFIX,
        cli_prog_name="tms-sidecar",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        frozen=True,
    )

    server: Annotated[
        str,
        pydantic.Field(pattern=r"^\S+:\d{1,5}$", description="HOST:PORT of tms-server"),
    ]
    worker_id: Annotated[
        str,
        pydantic.Field(pattern=r"^[\x21-\x7e]{1,256}$", description="id under which tms-server knows this worker"),
    ]
    token_file: Annotated[
        pathlib.Path,
        pydantic.Field(description="file with the token of this worker's group; read again at each connection"),
    ]
    worker_endpoint: Annotated[
        str,
        pydantic.Field(description="HOST:HTTP:GRPC:METRICS where the model server listens"),
    ]
    model_repository: Annotated[
        pathlib.Path,
        pydantic.Field(description="directory that the model server serves, in explicit model control mode"),
    ]
    data_dir: Annotated[
        pathlib.Path,
        pydantic.Field(description="this sidecar's own directory: the last desired state, without credentials"),
    ]
    cache_dir: Annotated[
        pathlib.Path,
        pydantic.Field(description="content-addressed model cache, shared by the sidecars of a host"),
    ]
    worker_headers_file: Annotated[
        pathlib.Path | None,
        pydantic.Field(
            description="file of lines NAME=VALUE: headers that go with every call to the model server, over gRPC also as "
            "triton-grpc-protocol-NAME; for servers that restrict calls"
        ),
    ] = None
    worker_headers: Annotated[
        pydantic.SecretStr | None,
        pydantic.Field(
            description="such lines themselves; for the variable, since others on the machine can read a program's flags"
        ),
    ] = None
    cache_budget: Annotated[
        int,
        pydantic.Field(
            ge=0,
            description="bytes of the disk that the model cache may take; models that no lease on the host needs go "
            "first; 0: what the disk has",
        ),
    ] = 0
    fetch_limit: Annotated[
        int,
        pydantic.Field(ge=0, le=1024, description="reads from stores at a time, of all sidecars on the cache; 0: any"),
    ] = 16
    fetch_limit_per_repository: Annotated[
        int,
        pydantic.Field(ge=0, le=1024, description="the same from one bucket, host or volume; 0: any"),
    ] = 8
    replica_id: Annotated[
        str,
        pydantic.Field(
            pattern=r"^[\x21-\x7e]{0,253}$", description="name of this replica where its group has several, as a pod's"
        ),
    ] = ""
    health_address: Annotated[
        str,
        pydantic.Field(min_length=1, description="address of the port for a pod's probes"),
    ] = "127.0.0.1"
    health_port: Annotated[
        int,
        pydantic.Field(
            ge=0,
            le=65535,
            description="port that answers /livez, /readyz, /workerlivez and /drain over HTTP, in a pod whose clients "
            "reach the model server directly; 0: none",
        ),
    ] = 0
    model_stay: Annotated[
        float,
        pydantic.Field(
            ge=0,
            le=86400,
            description="with --health-port: seconds that a model which is not wanted any more is served on, so that "
            "clients' connections end before; the model server's --grpc-max-connection-age or more",
        ),
    ] = 0.0
    wedged_after: Annotated[
        float,
        pydantic.Field(
            ge=0,
            le=86400,
            description="seconds without any progress after which a model server with requests in it counts as wedged; "
            "longer than any request takes; 0: never",
        ),
    ] = 60.0
    server_ca: Annotated[
        pathlib.Path | None,
        pydantic.Field(description="certificates that tms-server's is checked with; TLS when given"),
    ] = None
    server_cert: Annotated[
        pathlib.Path | None,
        pydantic.Field(description="this sidecar's certificate for mutual TLS; needs --server-key"),
    ] = None
    server_key: Annotated[
        pathlib.Path | None,
        pydantic.Field(description="key of --server-cert"),
    ] = None
    drain_timeout: Annotated[
        float,
        pydantic.Field(
            gt=0, le=86400, description="seconds that calls under way get when an endpoint closes or a model goes"
        ),
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        pydantic.Field(description="least level that is logged"),
    ] = "info"

    @property
    def worker(self) -> values.Endpoint:
        return parse_endpoint(self.worker_endpoint)

    @property
    def shown_headers(self) -> dict[str, str]:
        """What goes with every call to the model server. OSError where the file cannot be read any more."""
        if self.worker_headers_file is None:
            return access.parse(self.worker_headers.get_secret_value()) if self.worker_headers else {}
        return access.parse(self.worker_headers_file.read_text(encoding="utf-8"))

    @pydantic.field_validator("worker_headers")
    @classmethod
    def _check_headers(cls, lines: pydantic.SecretStr | None) -> pydantic.SecretStr | None:
        if lines is not None:
            access.parse(lines.get_secret_value())
        return lines

    @pydantic.field_validator("worker_headers_file")
    @classmethod
    def _check_headers_file(cls, path: pathlib.Path | None) -> pathlib.Path | None:
        if path is not None:
            try:
                access.parse(path.read_text(encoding="utf-8"))
            except OSError as error:
                raise ValueError(f"{path} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not text in UTF-8") from None
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        return path

    @pydantic.field_validator("worker_endpoint")
    @classmethod
    def _check_endpoint(cls, text: str) -> str:
        parse_endpoint(text)
        return text

    @pydantic.field_validator("token_file", "server_ca", "server_cert", "server_key")
    @classmethod
    def _check_file(cls, path: pathlib.Path | None) -> pathlib.Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"{path} is not a file; name one that this user can read")
        return path

    @pydantic.model_validator(mode="after")
    def _check_pair(self) -> Settings:
        if (self.server_cert is None) != (self.server_key is None):
            raise ValueError("--server-cert and --server-key belong together; give both or neither")
        if self.worker_headers_file and self.worker_headers:
            raise ValueError("--worker-headers-file and --worker-headers: give one of them")
        return self


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from the flags and the environment. Prints what is wrong and exits with 2, as flags parsers do."""
    source = pydantic_settings.CliSettingsSource[argparse.ArgumentParser](
        Settings, root_parser=_parser(), add_argument_method=_add_argument
    )
    try:
        return pydantic_settings.CliApp.run(Settings, cli_args=list(arguments), cli_settings_source=source)
    except pydantic.ValidationError as error:
        for each in error.errors():
            sys.stderr.write(f"tms-sidecar: {_explain(str(each['loc'][0]) if each['loc'] else '', each)}\n")
        sys.stderr.write("tms-sidecar: see tms-sidecar --help\n")
        raise SystemExit(2) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tms-sidecar",
        description=inspect.cleandoc(Settings.__doc__ or ""),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=42, width=120),
        allow_abbrev=False,
    )
    version = f"tms-sidecar {importlib.metadata.version('tms')}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
    return parser


def _add_argument(parser: argparse.ArgumentParser, *names: str, **how: Any) -> argparse.Action:
    """As argparse does, with a word for the value instead of its type."""
    word = METAVARS.get(names[0].removeprefix("--"))
    return parser.add_argument(*names, **how | ({} if word is None else {"metavar": word}))


def parse_endpoint(text: str) -> values.Endpoint:
    """HOST:HTTP:GRPC:METRICS; an IPv6 host stands in brackets. ValueError says what is expected."""
    try:
        host, *ports = text.rsplit(":", 3)
        http_port, grpc_port, metrics_port = (int(port) for port in ports)
    except ValueError:
        raise ValueError(f"{text!r} is not HOST:HTTP:GRPC:METRICS, as in 127.0.0.1:8000:8001:8002") from None
    if not host or not all(0 < port < 65536 for port in (http_port, grpc_port, metrics_port)):
        raise ValueError(f"{text!r} must have a host and three ports from 1 to 65535")
    return values.Endpoint(host.removeprefix("[").removesuffix("]"), http_port, grpc_port, metrics_port)


def _explain(field: str, error: object) -> str:
    assert isinstance(error, dict)
    message = str(error["msg"]).removeprefix("Value error, ")
    if not field:
        return message
    flag = f"--{field.replace('_', '-')}"
    if error["type"] == "missing":
        message = f"is required: {Settings.model_fields[field].description}"
    elif error["type"] == "string_pattern_mismatch":
        message = f"{error['input']!r} is not {Settings.model_fields[field].description}"
    return f"{flag} (or {PREFIX}{field.upper()}): {message}"

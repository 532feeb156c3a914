"""Settings of one worker: what the flags mean, as frozen values for each part.

Decides which combinations make sense. Must never open a file or a socket.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import pathlib
from collections.abc import Sequence

import grpc

from gpu_worker import core, flags, logs, metrics
from gpu_worker.engine import border, limiting, statistics
from gpu_worker.grpc import listen
from gpu_worker.http import limits as http_limits
from gpu_worker.tracing import settings as trace_settings
from gpu_worker.wire import control, forwarding, restriction, rules, sharing

_FIRST_RESPONSE_BOUNDS_MS = (100.0, 500.0, 2000.0, 5000.0)
_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_BACKENDS = ("", "onnxruntime")

# Our flag to gRPC's channel argument.
_CHANNEL = {
    "grpc_keepalive_time": "grpc.keepalive_time_ms",
    "grpc_keepalive_timeout": "grpc.keepalive_timeout_ms",
    "grpc_keepalive_permit_without_calls": "grpc.keepalive_permit_without_calls",
    "grpc_http2_max_pings_without_data": "grpc.http2.max_pings_without_data",
    "grpc_http2_min_recv_ping_interval_without_data": "grpc.http2.min_ping_interval_without_data_ms",
    "grpc_http2_max_ping_strikes": "grpc.http2.max_ping_strikes",
    "grpc_max_connection_age": "grpc.max_connection_age_ms",
    "grpc_max_connection_age_grace": "grpc.max_connection_age_grace_ms",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Http:
    """The HTTP front; `tls` is certificate, key and authority of clients, where given."""

    address: str
    port: int
    reuse_port: bool
    limits: http_limits.Limits
    tls: tuple[str, str, str | None] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics port."""

    address: str
    port: int
    switches: metrics.Switches


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of a worker's settings; a front that is off is None. `ignored` names flags that were given without effect."""

    core: core.Options
    http: Http | None
    grpc: listen.Listen | None
    grpc_native: bool
    metrics: Metrics | None
    http_rules: rules.Rules
    grpc_rules: rules.Rules
    frontends: int
    exit_timeout_s: float
    ready_file: pathlib.Path | None
    log: logs.Settings
    ignored: tuple[str, ...]


def load(arguments: Sequence[str]) -> Settings:
    """Exits with help or usage as argparse does; raises InferenceError naming the flag that is not to be had."""
    given, ignored = flags.parse(arguments)
    guard = _control(given)
    return Settings(
        core=_core(given),
        http=_http(given) if given.allow_http else None,
        grpc=_grpc(given) if given.allow_grpc else None,
        grpc_native=given.grpc_frontend == "native",
        metrics=_metrics(given) if given.allow_metrics else None,
        http_rules=_http_rules(given, guard),
        grpc_rules=_grpc_rules(given, guard),
        frontends=_frontends(given),
        exit_timeout_s=given.exit_timeout_secs,
        ready_file=pathlib.Path(given.ready_file) if given.ready_file else None,
        log=_log(given),
        ignored=tuple(ignored),
    )


def _core(given: argparse.Namespace) -> core.Options:
    if not given.model_repository:
        raise _refused("--model-repository is required: name the directory of models")
    if given.load_model and given.model_control_mode != core.ControlMode.EXPLICIT.value:
        raise _refused("--load-model needs --model-control-mode=explicit")
    if "*" in given.load_model and len(given.load_model) > 1:
        raise _refused("--load-model=* means every model: name no other beside it")
    return core.Options(
        repositories=tuple(map(pathlib.Path, given.model_repository)),
        control=core.ControlMode(given.model_control_mode),
        load_at_start=tuple(given.load_model),
        exit_on_error=given.exit_on_error,
        strict_readiness=given.strict_readiness,
        auto_complete=not (given.disable_auto_complete_config or given.strict_model_config),
        backend_config=_backend_config(given),
        poll_s=given.repository_poll_secs,
        load_thread_count=given.model_load_thread_count,
        load_retry_count=given.model_load_retry_count,
        cache_bytes=_cache_bytes(given),
        limits=_limits(given),
        observed=_observed(given),
        server_id=given.id,
        trace=_trace(given),
        model_config_name=given.model_config_name,
    )


def _limits(given: argparse.Namespace) -> tuple[limiting.Limit, ...] | None:
    """None where the rate limiter is off."""
    limits = tuple(limiting.Limit(*each) for each in given.rate_limit_resource)
    if given.rate_limit != "off":
        return limits
    if limits:
        raise _refused(f"--rate-limit-resource={limits[0].name} needs --rate-limit=execution_count")
    return None


def _cache_bytes(given: argparse.Namespace) -> int:
    """The size of the one cache there is; 0 for none."""
    size: int = given.response_cache_byte_size
    for name, setting, value in given.cache_config:
        flag = f"--cache-config={name},{setting}={value}"
        if name != "local" or setting != "size":
            raise _refused(f"{flag} is not known: there is the cache 'local' with the setting 'size'")
        if given.response_cache_byte_size:
            raise _refused(f"{flag} and --response-cache-byte-size say the same: give one of them")
        if not (value.isascii() and value.isdigit()):
            raise _refused(f"{flag} is not a whole number of bytes")
        size = int(value)
    return size


_TRACE_SETTINGS = {
    "": ("level", "rate", "count", "mode"),
    trace_settings.TRITON: ("file", "log-frequency"),
    trace_settings.OPENTELEMETRY: ("url", "resource"),
}


def _trace(given: argparse.Namespace) -> trace_settings.Settings:
    """What --trace-config says, and the older flags where it says nothing."""
    levels: list[str] = list(given.trace_level)
    resource: list[tuple[str, str]] = []
    found = {
        "file": given.trace_file,
        "rate": given.trace_rate,
        "count": given.trace_count,
        "log-frequency": given.trace_log_frequency,
    }
    for mode, setting, value in given.trace_config:
        _check_trace_flag(mode, setting, value)
        if setting == "level":
            levels.append(value)
        elif setting == "resource":
            key, _, text = value.partition("=")
            resource.append((key, text))
        else:
            found[setting] = value
    return _checked_trace(levels, resource, found)


def _check_trace_flag(mode: str, setting: str, value: str) -> None:
    flag = f"--trace-config {mode},{setting}={value}" if mode else f"--trace-config {setting}={value}"
    if setting not in _TRACE_SETTINGS[mode]:
        known = ", ".join(f"{prefix},{name}".lstrip(",") for prefix, names in _TRACE_SETTINGS.items() for name in names)
        raise _refused(f"{flag} is not known: settings are {known}")
    if setting == "mode" and value not in (trace_settings.TRITON, trace_settings.OPENTELEMETRY):
        raise _refused(f"{flag} is not known: the mode must be triton or opentelemetry")
    if setting == "resource" and not all(value.partition("=")):
        raise _refused(f"{flag} is not of the form resource=KEY=VALUE")


def _checked_trace(
    levels: list[str], resource: list[tuple[str, str]], found: dict[str, str | int | None]
) -> trace_settings.Settings:
    numbers = {
        field: trace_settings.number(f"--trace-config {name}", str(found[name]), least)
        for field, name, least in (("rate", "rate", 0), ("count", "count", -1), ("log_frequency", "log-frequency", 0))
        if found.get(name) is not None
    }
    file, spans = str(found["file"] or ""), found.get("mode") == trace_settings.OPENTELEMETRY
    if file and not os.access(pathlib.Path(file).absolute().parent, os.W_OK):
        raise _refused(f"--trace-config triton,file={file} cannot be written: its directory must be there and writable")
    settings = trace_settings.Settings(
        mode=trace_settings.OPENTELEMETRY if spans else trace_settings.TRITON,
        url=str(found.get("url") or trace_settings.Settings().url),
        resource=tuple(resource),
        file=file,
        levels=trace_settings.levels(levels),
        **numbers,
    )
    if spans and trace_settings.TENSORS in settings.levels:
        raise _refused("--trace-config level=TENSORS needs the mode triton: spans hold no tensors")
    if settings.levels and not settings.destination:
        raise _refused("--trace-config level needs --trace-config triton,file=FILE")
    return settings


def _frontends(given: argparse.Namespace) -> int:
    count: int = given.frontends
    if count > 1 and not (given.allow_http or given.allow_grpc):
        raise _refused(f"--frontends={count} needs --allow-http or --allow-grpc")
    return count


def _control(given: argparse.Namespace) -> control.Control:
    if not given.control_token_file:
        return control.OPEN
    try:
        token = pathlib.Path(given.control_token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"--control-token-file={given.control_token_file} cannot be read: {error}") from error
    if not token:
        raise _refused(f"--control-token-file={given.control_token_file} is empty: write a token into it")
    return control.Control(token)


def _http_rules(given: argparse.Namespace, guard: control.Control) -> rules.Rules:
    return rules.Rules(
        guard,
        _sharing(given, given.http_address),
        restriction.Restriction("API", restriction.parse("http-restricted-api", given.http_restricted_api)),
        _forwarding("http-header-forward-pattern", given.http_header_forward_pattern),
        trace_context=_trace(given).mode == trace_settings.OPENTELEMETRY,
    )


def _grpc_rules(given: argparse.Namespace, guard: control.Control) -> rules.Rules:
    keys = restriction.parse("grpc-restricted-protocol", given.grpc_restricted_protocol, restriction.GRPC_PREFIX)
    return rules.Rules(
        guard,
        _sharing(given, given.grpc_address),
        restriction.Restriction("protocol", keys),
        _forwarding("grpc-header-forward-pattern", given.grpc_header_forward_pattern),
        trace_context=_trace(given).mode == trace_settings.OPENTELEMETRY,
    )


def _forwarding(flag: str, pattern: str | None) -> forwarding.Forwarding:
    try:
        return forwarding.Forwarding(pattern or "")
    except border.InferenceError as error:
        raise _refused(f"--{flag}: {error.message}") from None


def _sharing(given: argparse.Namespace, address: str) -> sharing.Sharing:
    """Unless the flag says otherwise, only clients on this machine may use shared memory."""
    asked: bool | None = given.allow_client_shm
    return sharing.Sharing(allowed=_is_loopback(address) if asked is None else asked)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def _backend_config(given: argparse.Namespace) -> dict[str, str]:
    found = {}
    for backend, setting, value in given.backend_config:
        if backend not in _BACKENDS:
            message = f"--backend-config={backend},{setting}={value} is not supported: the only backend is onnxruntime"
            raise border.InferenceError(border.ErrorKind.UNSUPPORTED, message)
        found[setting] = value
    return found


def _http(given: argparse.Namespace) -> Http:
    certificate, key, client_ca = given.http_tls_cert, given.http_tls_key, given.http_tls_client_ca
    if bool(certificate) != bool(key):
        raise _refused("--http-tls-cert and --http-tls-key need each other")
    if client_ca and not certificate:
        raise _refused("--http-tls-client-ca needs --http-tls-cert and --http-tls-key")
    limits = http_limits.Limits(
        body_bytes=given.http_max_input_size,
        head_timeout_s=given.http_header_timeout_secs,
        body_timeout_s=given.http_body_timeout_secs,
        idle_timeout_s=given.http_idle_timeout_secs,
        age_s=given.http_max_connection_age_secs,
    )
    tls = (certificate, key, client_ca) if certificate else None
    return Http(given.http_address, given.http_port, given.reuse_http_port, limits, tls)


def _grpc(given: argparse.Namespace) -> listen.Listen:
    arguments = tuple(
        (argument, int(getattr(given, flag))) for flag, argument in _CHANNEL.items() if getattr(given, flag) is not None
    )
    compressed = given.grpc_infer_response_compression_level != "none"
    return listen.Listen(
        given.grpc_address,
        given.grpc_port,
        _grpc_tls(given),
        given.reuse_grpc_port,
        arguments,
        grpc.Compression.Gzip if compressed else grpc.Compression.NoCompression,
    )


def _grpc_tls(given: argparse.Namespace) -> listen.Tls | None:
    files = (given.grpc_server_cert, given.grpc_server_key, given.grpc_root_cert)
    mutual = given.grpc_use_ssl_mutual
    if not (given.grpc_use_ssl or mutual):
        if any(files):
            raise _refused("--grpc-server-cert, --grpc-server-key and --grpc-root-cert need --grpc-use-ssl=true")
        return None
    if not (files[0] and files[1]):
        raise _refused("--grpc-use-ssl needs --grpc-server-cert and --grpc-server-key")
    if mutual and not files[2]:
        raise _refused("--grpc-use-ssl-mutual needs --grpc-root-cert")
    root = pathlib.Path(files[2]) if files[2] else None
    return listen.Tls(pathlib.Path(files[0]), pathlib.Path(files[1]), root, mutual)


def _observed(given: argparse.Namespace) -> statistics.Observed:
    chosen = dict(given.metrics_config)
    return statistics.Observed(
        bounds_ms=_FIRST_RESPONSE_BOUNDS_MS if chosen.get("histogram_latencies") else (),
        quantiles=chosen.get("summary_quantiles", _QUANTILES) if chosen.get("summary_latencies") else (),
    )


def _metrics(given: argparse.Namespace) -> Metrics:
    switches = metrics.Switches(
        given.allow_gpu_metrics,
        given.allow_cpu_metrics,
        given.metrics_interval_ms / 1000,
        dict(given.metrics_config).get("counter_latencies", True),
    )
    return Metrics(given.metrics_address or given.http_address, given.metrics_port, switches)


def _log(given: argparse.Namespace) -> logs.Settings:
    return logs.Settings(
        info=given.log_info,
        warning=given.log_warning,
        error=given.log_error,
        verbose_level=given.log_verbose,
        format=given.log_format,
        file=given.log_file or "",
    )


def _refused(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)

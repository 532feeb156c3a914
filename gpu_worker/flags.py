"""The command line: Triton's flags by their names, and a few of our own.

Decides which flags are acted on, which are harmless to ignore and which are refused. Must never accept a flag that
would change what the server does and then not do it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

from gpu_worker import logs
from gpu_worker.engine import border

_TRUE = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
_MAX_PORT = 65535
_MAX_QUANTILES = 20
METRICS_SETTINGS = ("counter_latencies", "histogram_latencies", "summary_latencies", "summary_quantiles")


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """One flag: `parse` reads its value, `repeated` gathers several; a boolean without a value means true."""

    name: str
    help: str
    parse: Callable[[str], Any]
    default: Any = None
    metavar: str = "VALUE"
    repeated: bool = False
    aliases: tuple[str, ...] = ()


def boolean(text: str) -> bool:
    """true, false, 1, 0, on and off, in any case."""
    try:
        return _TRUE[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a boolean: use true or false") from None


def port(text: str) -> int:
    number = whole(text)
    if number > _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{number} is not a port: use 0 (any free one) to {_MAX_PORT}")
    return number


def whole(text: str) -> int:
    """A decimal number of 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    number = whole(text)
    if not number:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return number


def moment(text: str) -> float:
    """Seconds, more than none."""
    number = seconds(text)
    if not number:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def choice(*values: str) -> Callable[[str], str]:
    """One of `values`."""

    def parse(text: str) -> str:
        if text not in values:
            raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(values)}")
        return text

    return parse


def backend_setting(text: str) -> tuple[str, str, str]:
    """(backend or empty, setting, value) of `[backend,]setting=value`."""
    head, separator, value = text.partition("=")
    backend, comma, setting = head.partition(",")
    if not comma:
        backend, setting = "", head
    if not separator or not setting:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form [backend,]setting=value")
    return backend, setting, value


def limit(text: str) -> tuple[str, int, str]:
    """(resource, count, device or empty) of `resource:count[:device]`."""
    name, *rest = text.split(":")
    if not name or len(rest) not in (1, 2) or not all(each.isascii() and each.isdigit() for each in rest):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form name:count[:device]")
    return name, int(rest[0]), str(int(rest[1])) if rest[1:] else ""


def cache_setting(text: str) -> tuple[str, str, str]:
    """(cache, setting, value) of `cache,setting=value`."""
    head, separator, value = text.partition("=")
    cache, comma, setting = head.partition(",")
    if not (separator and comma and cache and setting):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form cache,setting=value")
    return cache, setting, value


def trace_setting(text: str) -> tuple[str, str, str]:
    """(mode or empty, setting, value) of `[mode,]setting=value`."""
    head, separator, value = text.partition("=")
    mode, comma, setting = head.partition(",")
    if not comma:
        mode, setting = "", head
    if not separator or not setting or mode not in ("", "triton", "opentelemetry"):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form [mode,]setting=value")
    return mode, setting, value


def metrics_setting(text: str) -> tuple[str, bool | tuple[float, ...]]:
    """(name, value) of `name=value`; quantiles are shares between 0 and 1, their errors are not needed."""
    name, separator, value = text.partition("=")
    if not separator or name not in METRICS_SETTINGS:
        raise argparse.ArgumentTypeError(f"'{text}' is not name=value of {', '.join(METRICS_SETTINGS)}")
    return name, _quantiles(value) if name == "summary_quantiles" else boolean(value)


def _quantiles(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part.partition(":")[0]) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not all(0 < quantile < 1 for quantile in found) or len(found) > _MAX_QUANTILES:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of at most {_MAX_QUANTILES} shares between 0 and 1")
    return found


def _on(name: str, words: str) -> Flag:
    return Flag(name, words, boolean, default=True, metavar="BOOL")


def _off(name: str, words: str) -> Flag:
    return Flag(name, words, boolean, default=False, metavar="BOOL")


MODELS = (
    Flag(
        "model-repository",
        "directory of models; may be repeated",
        str,
        metavar="DIR",
        repeated=True,
        aliases=("model-store",),
    ),
    Flag(
        "model-control-mode",
        "none: load all at start; explicit: load on request; poll: follow the repository",
        choice("none", "explicit", "poll"),
        "none",
        "MODE",
    ),
    Flag(
        "load-model",
        "model to load at start in explicit mode, * for all; may be repeated",
        str,
        metavar="NAME",
        repeated=True,
    ),
    Flag("repository-poll-secs", "seconds between two looks at the repository; 0: never", whole, 15, "S"),
    _on("exit-on-error", "exit when a model cannot be loaded at start"),
    _on("strict-readiness", "ready only while all models that should be loaded are"),
    _off("disable-auto-complete-config", "take no missing configuration from the model itself"),
    _off("strict-model-config", "older name for the same, as a boolean"),
    Flag("model-load-retry-count", "how often a load that fails is tried again", whole, 0, "N"),
    Flag(
        "model-config-name",
        "configuration to take from each model's configs/NAME.pbtxt where it is there",
        str,
        "",
        "NAME",
    ),
    Flag("model-load-thread-count", "models loaded at the same time", positive, 4, "N"),
    Flag(
        "backend-config", "[backend,]setting=value; may be repeated", backend_setting, metavar="SETTING", repeated=True
    ),
    Flag(
        "cache-config",
        "local,size=BYTES: keep so many bytes of answers for models with response_cache.enable",
        cache_setting,
        metavar="SETTING",
        repeated=True,
    ),
    Flag("response-cache-byte-size", "older name for --cache-config local,size=", whole, 0, "BYTES"),
    Flag(
        "rate-limit",
        "execution_count: instances of all models share the resources of their rate_limiter; off: they run when they are free",
        choice("off", "execution_count"),
        "off",
        "MODE",
    ),
    Flag(
        "rate-limit-resource",
        "NAME:COUNT[:DEVICE]: how many of a resource there are, on each device or that one; may be repeated. Unless given: "
        "the most that any instance needs",
        limit,
        metavar="LIMIT",
        repeated=True,
    ),
    Flag("id", "name that this server gives itself", str, "", "NAME"),
    Flag("exit-timeout-secs", "longest wait for requests in flight at exit", seconds, 30.0, "S"),
)
HTTP = (
    _on("allow-http", "serve HTTP"),
    Flag("http-address", "address to listen on", str, "0.0.0.0", "ADDRESS"),  # noqa: S104 - Triton's default
    Flag("http-port", "port to listen on, 0 for any free one", port, 8000, "PORT"),
    _off("reuse-http-port", "share the port with other processes"),
    Flag("http-max-input-size", "largest request body in bytes, also once inflated", positive, 64 * 2**20, "BYTES"),
    Flag("http-header-timeout-secs", "longest time a request's head may take", moment, 20.0, "S"),
    Flag("http-body-timeout-secs", "longest time a body may take, beside a second for each 16 KiB", moment, 60.0, "S"),
    Flag("http-idle-timeout-secs", "how long an idle connection is kept", moment, 620.0, "S"),
    Flag(
        "http-max-connection-age-secs",
        "age after which a connection ends with its next answer, give or take a tenth; 0: never",
        seconds,
        0.0,
        "S",
    ),
    Flag(
        "http-restricted-api",
        "API,API:HEADER=VALUE: only who sends the header with the value may use these APIs (health, metadata, inference, "
        "shared-memory, model-config, model-repository, statistics, trace, logging); may be repeated",
        str,
        metavar="GROUP",
        repeated=True,
    ),
    Flag(
        "http-header-forward-pattern",
        "RE2 pattern of names of headers (in lower case) that become parameters of requests",
        str,
        metavar="PATTERN",
    ),
    Flag("http-tls-cert", "PEM file of the certificate; turns on TLS", str, metavar="FILE"),
    Flag("http-tls-key", "PEM file of its key", str, metavar="FILE"),
    Flag(
        "http-tls-client-ca",
        "PEM file of the authorities that clients' certificates must come from",
        str,
        metavar="FILE",
    ),
)
GRPC = (
    _on("allow-grpc", "serve gRPC"),
    Flag("grpc-address", "address to listen on", str, "0.0.0.0", "ADDRESS"),  # noqa: S104 - Triton's default
    Flag("grpc-port", "port to listen on, 0 for any free one", port, 8001, "PORT"),
    _off("reuse-grpc-port", "share the port with other processes"),
    Flag(
        "grpc-infer-response-compression-level",
        "compress infer answers with gzip unless none",
        choice("none", "low", "medium", "high"),
        "none",
        "LEVEL",
    ),
    Flag(
        "grpc-restricted-protocol",
        "API,API:KEY=VALUE: only who sends the metadata triton-grpc-protocol-KEY with the value may use these APIs (as for "
        "HTTP); may be repeated",
        str,
        metavar="GROUP",
        repeated=True,
    ),
    Flag(
        "grpc-header-forward-pattern",
        "RE2 pattern of keys of metadata that become parameters of requests",
        str,
        metavar="PATTERN",
    ),
    _off("grpc-use-ssl", "serve TLS"),
    _off("grpc-use-ssl-mutual", "serve TLS and ask clients for certificates"),
    Flag("grpc-server-cert", "PEM file of the certificate", str, metavar="FILE"),
    Flag("grpc-server-key", "PEM file of its key", str, metavar="FILE"),
    Flag(
        "grpc-root-cert", "PEM file of the authorities that clients' certificates must come from", str, metavar="FILE"
    ),
    Flag(
        "grpc-frontend",
        "what speaks gRPC: native (this project's own) or grpcio (gRPC's core)",
        choice("native", "grpcio"),
        "native",
        "NAME",
    ),
    Flag("grpc-keepalive-time", "milliseconds without traffic before a ping", integer, metavar="MS"),
    Flag("grpc-keepalive-timeout", "milliseconds to wait for its answer", integer, metavar="MS"),
    Flag("grpc-keepalive-permit-without-calls", "ping also while no call runs", boolean, metavar="BOOL"),
    Flag("grpc-http2-max-pings-without-data", "pings that may be sent without data", integer, metavar="N"),
    Flag(
        "grpc-http2-min-recv-ping-interval-without-data",
        "least milliseconds between a client's pings",
        integer,
        metavar="MS",
    ),
    Flag("grpc-http2-max-ping-strikes", "bad pings before a connection is closed", integer, metavar="N"),
    Flag("grpc-max-connection-age", "milliseconds a connection may live, give or take a tenth", integer, metavar="MS"),
    Flag(
        "grpc-max-connection-age-grace",
        "milliseconds for its calls to end after that, before they are cut; without it they are not",
        integer,
        metavar="MS",
    ),
)
METRICS = (
    _on("allow-metrics", "serve metrics"),
    Flag("metrics-address", "address to listen on; that of HTTP unless given", str, metavar="ADDRESS"),
    Flag("metrics-port", "port to listen on, 0 for any free one", port, 8002, "PORT"),
    _on("allow-gpu-metrics", "show GPUs"),
    _on("allow-cpu-metrics", "show CPU and memory"),
    Flag(
        "metrics-config",
        "name=value of counter_latencies, histogram_latencies, summary_latencies (booleans) or summary_quantiles "
        "(quantile[:error],...); may be repeated",
        metrics_setting,
        metavar="SETTING",
        repeated=True,
    ),
    Flag("metrics-interval-ms", "how old a reading of the machine may be", positive, 2000, "MS"),
)
OTHER = (
    Flag(
        "frontends",
        "processes that share the ports of HTTP and gRPC before one engine process; 1: all in one process",
        positive,
        1,
        "N",
    ),
    Flag("log-verbose", "0: off; above: debug messages", whole, 0, "LEVEL"),
    _on("log-info", "log information"),
    _on("log-warning", "log warnings"),
    _on("log-error", "log errors"),
    Flag(
        "log-format",
        "default: JSON lines, or for reading on a terminal; ISO8601: text that begins with the time",
        choice(*logs.FORMATS),
        logs.DEFAULT,
        "FORMAT",
    ),
    Flag("log-file", "append the log to this file instead of stderr", str, metavar="FILE"),
    Flag(
        "control-token-file",
        "only who shows this file's token (header tms-control-token) may list, load and unload models",
        str,
        metavar="FILE",
    ),
    Flag(
        "allow-client-shm",
        "let clients register shared memory; without the flag only clients of a front that listens on loopback may",
        boolean,
        metavar="BOOL",
    ),
    Flag("ready-file", "write the bound ports there as JSON once ready to serve", str, metavar="FILE"),
)
TRACES = (
    Flag(
        "trace-config",
        "setting of the traces: level=TIMESTAMPS or TENSORS, rate=N, count=N, mode=triton or opentelemetry, "
        "triton,file=FILE, triton,log-frequency=N, opentelemetry,url=URL, opentelemetry,resource=KEY=VALUE; may be repeated",
        trace_setting,
        metavar="SETTING",
        repeated=True,
    ),
    Flag("trace-file", "older name for --trace-config triton,file=", str, metavar="FILE"),
    Flag("trace-level", "older name for --trace-config level=; may be repeated", str, metavar="LEVEL", repeated=True),
    Flag("trace-rate", "older name for --trace-config rate=", whole, metavar="N"),
    Flag("trace-count", "older name for --trace-config count=", integer, metavar="N"),
    Flag("trace-log-frequency", "older name for --trace-config triton,log-frequency=", whole, metavar="N"),
)
GROUPS = (
    ("models", MODELS),
    ("HTTP", HTTP),
    ("gRPC", GRPC),
    ("metrics", METRICS),
    ("logs and life", OTHER),
    ("traces", TRACES),
)

IGNORED = {
    "backend-directory": "all backends are built in",
    "buffer-manager-thread-count": "the engine chooses its threads",
    "cache-directory": "the cache is built in",
    "cuda-memory-pool-byte-size": "the runtimes pool their memory themselves",
    "cuda-virtual-address-size": "the runtimes pool their memory themselves",
    "enable-peer-access": "no model spans GPUs",
    "grpc-infer-allocation-pool-size": "messages are not pooled",
    "grpc-infer-thread-count": "one event loop serves all calls",
    "grpc-max-response-pool-size": "messages are not pooled",
    "http-thread-count": "one event loop serves all connections",
    "min-supported-compute-capability": "ONNX Runtime checks the GPU itself",
    "pinned-memory-pool-byte-size": "no pinned memory is pooled",
    "repoagent-directory": "no repository agents are loaded",
}
"""Flags that are accepted and change nothing, with the reason."""

_NO_SAGEMAKER = "there is no SageMaker front"
_NO_VERTEX = "there is no Vertex AI front"

REFUSED = {
    "allow-sagemaker": _NO_SAGEMAKER,
    "allow-vertex-ai": _NO_VERTEX,
    "host-policy": "instances are not bound to NUMA nodes or cores: bind the whole process instead",
    "model-load-gpu-limit": "loads are not bounded by a share of a GPU's memory: onnxruntime's gpu_mem_limit bounds a model",
    "model-namespacing": "names are unique over all repositories, also within ensembles: rename models of one name",
    "sagemaker-port": _NO_SAGEMAKER,
    "sagemaker-safe-port-range": _NO_SAGEMAKER,
    "sagemaker-thread-count": _NO_SAGEMAKER,
    "vertex-ai-default-model": _NO_VERTEX,
    "vertex-ai-port": _NO_VERTEX,
    "vertex-ai-thread-count": _NO_VERTEX,
}
"""Flags that would change the server's behaviour in ways it does not have, with the reason."""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags' values by name (underscores for dashes), and the names of ignored flags that were given.

    Exits with help or a usage error as argparse does. Raises InferenceError UNSUPPORTED for a refused flag.
    """
    found = _parser().parse_args(arguments)
    for name, why in REFUSED.items():
        for value in getattr(found, _key(name)) or ():
            if value.lower() not in ("false", "0"):
                message = f"--{name}={value} is not supported by this server ({why}): leave the flag out"
                raise border.InferenceError(border.ErrorKind.UNSUPPORTED, message)
    return found, [name for name in IGNORED if getattr(found, _key(name)) is not None]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tms-worker",
        description="Serves models over the V2 inference protocol. Takes the flags of Triton by their names.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=42, width=120),
    )
    version = f"tms-worker {importlib.metadata.version('tms')}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
    for title, flags in GROUPS:
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    for name in IGNORED:
        parser.add_argument(f"--{name}", dest=_key(name), help=argparse.SUPPRESS)
    for name in REFUSED:
        parser.add_argument(
            f"--{name}", dest=_key(name), nargs="?", const="true", action="append", help=argparse.SUPPRESS
        )
    parser.epilog = (
        "Accepted without effect: " + ", ".join(IGNORED) + ". Refused, since not supported: " + ", ".join(REFUSED) + "."
    )
    return parser


def _add(group: argparse._ArgumentGroup, flag: Flag) -> None:
    names = [f"--{name}" for name in (flag.name, *flag.aliases)]
    words = flag.help if flag.default in (None, "") else f"{flag.help} ({_shown(flag.default)})"
    settings: dict[str, Any] = {"dest": _key(flag.name), "type": flag.parse, "default": flag.default, "help": words}
    settings["metavar"] = flag.metavar
    if flag.repeated:
        settings |= {"action": "append", "default": []}
    elif flag.parse is boolean:
        settings |= {"nargs": "?", "const": True}
    group.add_argument(*names, **settings)


def _key(name: str) -> str:
    return name.replace("-", "_")


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)

"""From the administrator's templates to command lines and environments.

A value fills a placeholder inside one argument; it never adds an argument, and nothing a lease says is a template.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from tms_server.backends.processes import options as options_module
from tms_server.model import resources
from tms_server.ports import backend

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
# Enough to find programs, libraries and a locale; secrets of the server live in other variables.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")


def refuse(options: options_module.Options, worker: resources.WorkerSpec) -> str | None:
    """Why local processes could never be such a worker."""
    if worker.image:
        return "image: workers of this server are local processes, not containers; name a command instead"
    if worker.profile:
        return "profile: workers of this server are local processes, which have no pod shapes; leave it empty"
    if worker.command and worker.command not in options.commands:
        allowed = ", ".join(sorted(options.commands))
        return f"command: {worker.command!r} is not one of the allowed commands ({allowed})"
    return _refuse_resources(options, worker.resources)


def worker_argv(options: options_module.Options, spec: backend.LaunchSpec, directory: pathlib.Path) -> tuple[str, ...]:
    """Command line of a group's worker; KeyError when its command is no longer allowed."""
    template = options.commands[spec.worker.command or options.default_command]
    endpoint = spec.endpoint
    return _fill(
        template,
        {
            "host": endpoint.host,
            "http_port": str(endpoint.http_port),
            "grpc_port": str(endpoint.grpc_port),
            "metrics_port": str(endpoint.metrics_port),
            "model_repository": str(directory / "models"),
            "token_file": str(directory / "token"),
        },
    )


def sidecar_argv(options: options_module.Options, spec: backend.LaunchSpec, directory: pathlib.Path) -> tuple[str, ...]:
    """Command line of a group's sidecar."""
    endpoint = spec.endpoint
    ports = (endpoint.http_port, endpoint.grpc_port, endpoint.metrics_port)
    values = {
        "server": options.server,
        "worker_id": spec.group_id,
        "token_file": str(directory / "token"),
        "worker_endpoint": ":".join((endpoint.host, *map(str, ports))),
        "model_repository": str(directory / "models"),
        "data_dir": str(directory / "sidecar"),
        "cache_dir": str(directory.parent.parent / "cache"),
    }
    budget = (f"--cache-budget={options.cache_bytes}",) if options.cache_bytes else ()
    return (*_fill(options.sidecar_command, values), *budget, *_tls_flags(options.sidecar_tls))


def worker_environment(options: options_module.Options, devices: Sequence[str]) -> dict[str, str]:
    """Variables of a worker: it sees the devices it was given, and without any none at all."""
    return {**sidecar_environment(options), "CUDA_VISIBLE_DEVICES": ",".join(devices)}


def sidecar_environment(options: options_module.Options) -> dict[str, str]:
    """Variables of a sidecar: what is inherited by name, then what the administrator gave."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, "PYTHONUNBUFFERED": "1", **options.environment}


def _refuse_resources(options: options_module.Options, wanted: resources.Resources) -> str | None:
    if min(wanted.gpus, wanted.cpu_milli, wanted.memory_bytes) < 0:
        return "resources: must not be negative; 0 means the administrator's default"
    if wanted.gpus > len(options.gpus):
        return f"resources.gpus: {wanted.gpus} asked, and {len(options.gpus)} are listed for workers of this server"
    if wanted.cpu_milli:
        return "resources.cpu_milli: local processes reserve no processors; leave it 0"
    if 0 < wanted.memory_bytes <= options.margin_bytes:
        return f"resources.memory_bytes: must exceed the {options.margin_bytes} bytes that are kept free on each worker"
    return None


def _fill(template: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Replaces the placeholders it knows; other braces are the administrator's own."""
    return tuple(_PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), argument) for argument in template)


def _tls_flags(tls: options_module.SidecarTls | None) -> tuple[str, ...]:
    if tls is None:
        return ()
    flags = (("--server-ca", tls.ca), ("--server-cert", tls.certificate), ("--server-key", tls.key))
    return tuple(f"{flag}={path}" for flag, path in flags if path is not None)

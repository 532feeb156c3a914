"""What the administrator decides about local processes. Frozen; nothing a lease says ever changes it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
import sys
from collections.abc import Mapping

from tms_server.model import ids

GIB = 2**30

# -P: what a model repository or a working directory holds is never imported.
_PYTHON = (sys.executable, "-P", "-m")

WORKER_COMMAND = (
    *_PYTHON,
    "gpu_worker",
    "--model-repository={model_repository}",
    "--model-control-mode=explicit",
    "--http-address={host}",
    "--http-port={http_port}",
    "--grpc-address={host}",
    "--grpc-port={grpc_port}",
    "--metrics-address={host}",
    "--metrics-port={metrics_port}",
    "--control-token-file={token_file}",
)
SIDECAR_COMMAND = (
    *_PYTHON,
    "sidecar",
    "--server={server}",
    "--worker-id={worker_id}",
    "--token-file={token_file}",
    "--worker-endpoint={worker_endpoint}",
    "--model-repository={model_repository}",
    "--data-dir={data_dir}",
    "--cache-dir={cache_dir}",
)


DEFAULT_COMMAND = "tms-worker"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pauses before a dead process is started anew; a run of `stable` starts the count again."""

    first: dt.timedelta = dt.timedelta(milliseconds=500)
    factor: float = 2.0
    longest: dt.timedelta = dt.timedelta(minutes=1)
    stable: dt.timedelta = dt.timedelta(minutes=1)

    def __post_init__(self) -> None:
        """Refuses what would never pause or never end."""
        if not 1 <= self.factor <= 100 or not dt.timedelta(0) < self.first <= self.longest:
            raise ValueError("backoff: needs 0 < first <= longest and a factor of 1 to 100")

    def pause(self, failures: int) -> dt.timedelta:
        """Pause after so many failures in a row, 1 or more."""
        # Past 64 steps every sensible cap is reached; the bound keeps the power finite.
        growth = self.factor ** min(failures - 1, 64)
        return dt.timedelta(seconds=min(self.longest.total_seconds(), self.first.total_seconds() * growth))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SidecarTls:
    """Files that the sidecars use towards the server; certificate and key make it mutual."""

    ca: pathlib.Path
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of the process backend.

    `commands` is the allow-list: a name and its argument template, with the placeholders ``{host}``, ``{http_port}``,
    ``{grpc_port}``, ``{metrics_port}``, ``{model_repository}`` and ``{token_file}`` (what sidecars show as the header
    ``tms-control-token``); a worker that names none runs `default_command`.
    `sidecar_command` knows ``{server}``, ``{worker_id}``, ``{token_file}``, ``{worker_endpoint}``,
    ``{model_repository}``, ``{data_dir}`` and ``{cache_dir}``. `environment` is given to both programs beside the few
    variables that they inherit. `gpus` are the uuids of the devices that workers may hold, each by one at a time.
    """

    data_dir: pathlib.Path
    installation_id: ids.InstallationId
    server: str
    """HOST:PORT that sidecars dial."""
    commands: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: {DEFAULT_COMMAND: WORKER_COMMAND}
    )
    default_command: str = DEFAULT_COMMAND
    sidecar_command: tuple[str, ...] = SIDECAR_COMMAND
    sidecar_tls: SidecarTls | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_memory_bytes: int = 4 * GIB
    margin_bytes: int = 0
    """Kept free of models on each worker."""
    cache_bytes: int = 0
    """Bound of the cache of models; 0: the disk."""
    gpus: tuple[str, ...] = ()
    backoff: Backoff = Backoff()
    stop_grace: dt.timedelta = dt.timedelta(seconds=30)
    """Time a process has between SIGTERM and SIGKILL."""
    stop_at_exit: bool = False
    log_bytes: int = 16 * 2**20
    """Size at which a log is turned over; one older file is kept."""

    def __post_init__(self) -> None:
        """Refuses what could not work; names the setting."""
        if self.default_command not in self.commands:
            raise ValueError(f"default_command: {self.default_command!r} is not one of {', '.join(self.commands)}")
        for name, argv in (*self.commands.items(), ("sidecar_command", self.sidecar_command)):
            if not argv or not argv[0]:
                raise ValueError(f"commands[{name}]: the program is missing")
        if self.margin_bytes < 0 or self.default_memory_bytes <= self.margin_bytes:
            raise ValueError("default_memory_bytes: must exceed margin_bytes, which must not be negative")
        if len(set(self.gpus)) != len(self.gpus):
            raise ValueError("gpus: a device is listed twice")

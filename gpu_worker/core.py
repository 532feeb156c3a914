"""The engine as the fronts see it: `border.Engine` over the registry of models.

Decides which mode of model control is in force, what is loaded at start and when the server is ready. It runs on one
event loop and never blocks it: models load in load threads and run in instance threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import pathlib
import resource
import time
from collections.abc import Mapping, Sequence

import structlog

from gpu_worker import loader, logs, polling, registry
from gpu_worker.engine import border, caching, delivery, departures, limiting, regions, running, serving, statistics
from gpu_worker.memory import cuda, system
from gpu_worker.python_backend import runtime as python_runtime
from gpu_worker.repository import completion, configuration, layout
from gpu_worker.runtime import onnx_runtime, port
from gpu_worker.tracing import settings as trace_settings
from gpu_worker.tracing import tracer
from protos.inference.v2 import model_config_pb2

_EXTENSIONS = (
    "classification",
    "sequence",
    "sequence(string_id)",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
_CONTROL_DISABLED = "explicit model load / unload is not allowed if polling is enabled"
_LEAVING_DISABLED = "clients can be sent away only where models are loaded explicitly (--model-control-mode=explicit)"
_MOST_REGIONS = 4096

log = structlog.get_logger(__name__)


class ControlMode(enum.Enum):
    """Who decides which models are loaded: nobody after start, clients through the repository calls, or the repository."""

    NONE = "none"
    EXPLICIT = "explicit"
    POLL = "poll"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """All that is set once for the life of the engine.

    `load_at_start` names the models that explicit control loads at start; `("*",)` means every model. `auto_complete`
    off is the strict mode: a model must bring its whole configuration. `backend_config` holds settings of ONNX Runtime
    for every model: `default-max-batch-size`, `intra_op_thread_count`, `inter_op_thread_count`. Clients see `server_id`
    as the server's name where one is given. The repositories are looked at every `poll_s` seconds (0: never) where polling
    is in force. `cache_bytes` of answers are kept for the models that want it. With `limits` the rate
    limiter is on, and there is no more of its resources than they say. A load that fails is tried `load_retry_count` times more. `model_config_name` names the configuration that each model uses where it has
    one of that name.
    """

    repositories: tuple[pathlib.Path, ...]
    control: ControlMode = ControlMode.NONE
    load_at_start: tuple[str, ...] = ()
    exit_on_error: bool = True
    strict_readiness: bool = True
    auto_complete: bool = True
    backend_config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_max_batch_size: int = 4
    poll_s: float = 15.0
    load_thread_count: int = 4
    load_retry_count: int = 0
    cache_bytes: int = 0
    limits: tuple[limiting.Limit, ...] | None = None
    observed: statistics.Observed = dataclasses.field(default_factory=statistics.Observed)
    model_config_name: str = ""
    server_id: str = ""
    trace: trace_settings.Settings = dataclasses.field(default_factory=trace_settings.Settings)
    server_name: str = "tms-worker"
    server_version: str = "0.1.0"


class Core(border.Engine):
    """An engine over one set of repositories; `create`, `start`, serve, `drain`, `close`, in this order."""

    def __init__(
        self,
        options: Options,
        models: registry.Registry,
        wait: polling.Pause,
        python: python_runtime.PythonRuntime,
    ) -> None:
        self._options = options
        self._models = models
        self._regions = regions.Regions(_most_regions())
        self._tracer = tracer.Tracer(options.trace)
        self._expected: set[str] = set()
        self._polling: asyncio.Task[None] | None = None
        self._wait = wait
        self.departures = departures.Departures(lambda name: bool(models.versions(name)))
        self._poller = polling.Poller(models, self._expected)
        models.listener = self
        self._started = False
        self._stopping = False
        self._python = python

    @classmethod
    def create(cls, options: Options, wait: polling.Pause = polling.pause) -> Core:
        """Builds the engine; nothing is loaded yet. `wait` lets the time between polls pass.

        Raises InferenceError where an option is refused.
        """
        defaults = completion.Defaults.of(
            options.backend_config, options.default_max_batch_size, auto_complete=options.auto_complete
        )
        cache = caching.Cache(options.cache_bytes) if options.cache_bytes else None
        limiter = limiting.Limiter(options.limits) if options.limits is not None else None
        repository = layout.Repository(options.repositories, options.model_config_name)
        python = python_runtime.PythonRuntime()
        runtimes: dict[str, port.Runtime] = {
            configuration.BACKEND: onnx_runtime.OnnxRuntime(),
            configuration.PYTHON: python,
        }
        opener = loader.Loader(runtimes, defaults, options.observed, cache, limiter)
        models = registry.Registry(repository, opener, options.load_thread_count, options.load_retry_count)
        return cls(options, models, wait, python)

    async def start(self) -> None:
        """Loads what is to be loaded at start.

        Raises InferenceError naming every model that failed, unless `exit_on_error` is off.
        """
        self._python.serve(self.submit)
        await self._models.sweep()
        names = await self._names_at_start()
        self._expected.update(names)
        results = await asyncio.gather(*(self._models.load(name, {}) for name in names), return_exceptions=True)
        failures = [f"{name}: {result}" for name, result in zip(names, results, strict=True) if result is not None]
        if failures and self._options.exit_on_error:
            raise border.InferenceError(border.ErrorKind.INTERNAL, "failed to load models: " + "; ".join(failures))
        self._started = True
        if self._options.control is ControlMode.POLL and self._options.poll_s:
            self._polling = asyncio.create_task(self._poller.run(self._options.poll_s, self._wait))

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests, lets accepted ones finish; true if all did within `timeout_s` seconds."""
        self._stopping = True
        self._stop_polling()
        return await self._models.drain(timeout_s)

    async def close(self) -> None:
        """Ends every thread and frees every model; requests still queued are answered with the stopping error."""
        self._stopping = True
        self._stop_polling()
        await self._models.close()
        await self._python.close()
        await asyncio.to_thread(self._tracer.close)

    def submit(self, requests: Sequence[border.InferRequest]) -> None:
        loop = asyncio.get_running_loop()
        arrival_ns = time.monotonic_ns()
        by_target: dict[serving.Scheduler, list[border.InferRequest]] = {}
        refused: list[delivery.Answered] = []
        for request in requests:
            try:
                by_target.setdefault(self._target(request), []).append(request)
            except border.InferenceError as error:
                refused.append((request.reply, error.bare()))
        for target, share in by_target.items():
            refused += target.submit(share, loop, arrival_ns, self._regions, self._tracer)
        delivery.deliver(refused)

    def _target(self, request: border.InferRequest) -> serving.Scheduler:
        if self._stopping:
            raise running.stopping()
        return self._models.version_for_inference(request.model, request.version).scheduler

    async def live(self) -> bool:
        return True

    async def ready(self) -> bool:
        if not self._started or self._stopping or self.departures.all_leave:
            return False
        return not self._options.strict_readiness or all(self._models.ready(name, "") for name in self._expected)

    async def server_metadata(self) -> border.ServerMetadata:
        return border.ServerMetadata(
            self._options.server_id or self._options.server_name, self._options.server_version, _EXTENSIONS
        )

    async def model_ready(self, name: str, version: str) -> bool:
        return self._models.ready(name, version)

    async def model_metadata(self, name: str, version: str) -> border.ModelMetadata:
        versions = (version,) if version else self._models.versions(name)
        return self._models.version(name, version).spec.metadata(versions)

    async def model_config(self, name: str, version: str) -> model_config_pb2.ModelConfig:
        return self._models.version(name, version).config

    async def statistics(self, name: str, version: str) -> Sequence[border.ModelStatistics]:
        return self._models.statistics(name, version)

    async def index(self, *, ready: bool) -> Sequence[border.IndexEntry]:
        return await self._models.index(ready=ready)

    async def load(self, name: str, parameters: Mapping[str, border.Parameter | bytes]) -> None:
        self._require_control()
        await self._models.load(name, parameters)

    def loaded(self, name: str) -> None:
        """registry.Listener: the model serves."""
        self._expected.add(name)
        self.departures.stay(name)

    def failed(self, name: str) -> None:
        """registry.Listener: the model was to serve."""
        self._expected.add(name)

    def dropped(self, name: str) -> None:
        """registry.Listener: the model is to serve no more."""
        self._expected.discard(name)
        self.departures.leave(name)

    async def leave(self, model: str) -> None:
        """Only where somebody decides from outside what is loaded: else any client could send all others away."""
        if self._options.control is not ControlMode.EXPLICIT:
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, _LEAVING_DISABLED)
        log.info("clients.sent_away", model=model)
        self.departures.leave(model)

    def leaving(self, model: str) -> bool:
        return self.departures.leaving(model)

    async def unload(self, name: str, *, unload_dependents: bool) -> None:
        self._require_control()
        await self._models.unload(name, unload_dependents=unload_dependents)

    async def system_regions(self, name: str) -> Sequence[border.SystemRegion]:
        return self._regions.found(border.SystemRegion, name)

    async def register_system_region(self, region: border.SystemRegion) -> None:
        self._regions.check_free(region.name)
        self._regions.add(system.SystemMemory(region))

    async def unregister_system_region(self, name: str) -> None:
        self._regions.remove(border.SystemRegion, name)

    async def cuda_regions(self, name: str) -> Sequence[border.CudaRegion]:
        return self._regions.found(border.CudaRegion, name)

    async def register_cuda_region(self, region: border.CudaRegion, handle: bytes) -> None:
        self._regions.check_free(region.name)
        # The first use of a device takes seconds.
        self._regions.add(await asyncio.to_thread(cuda.CudaMemory, region, handle))

    async def unregister_cuda_region(self, name: str) -> None:
        self._regions.remove(border.CudaRegion, name)

    async def trace_settings(
        self, model: str, changes: Mapping[str, Sequence[str] | None]
    ) -> Mapping[str, Sequence[str]]:
        if model and not self._models.ready(model, ""):
            raise border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, f"Request for unknown model : {model}")
        if changes:
            self._tracer.update(model, changes)
        return self._tracer.settings(model).told()

    async def log_settings(self, changes: Mapping[str, border.LogSetting]) -> Mapping[str, border.LogSetting]:
        return (logs.update(changes) if changes else logs.current()).told()

    def _require_control(self) -> None:
        if self._options.control is not ControlMode.EXPLICIT:
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, _CONTROL_DISABLED)
        if self._stopping:
            raise running.stopping()

    async def _names_at_start(self) -> list[str]:
        names = self._options.load_at_start
        if self._options.control is ControlMode.POLL:
            return await self._poller.begin()
        if self._options.control is ControlMode.NONE or "*" in names:
            return await self._models.names()
        return list(dict.fromkeys(names))

    def _stop_polling(self) -> None:
        if self._polling:
            self._polling.cancel()


def _most_regions() -> int:
    """So many that connections and models keep three quarters of the process's file descriptors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_REGIONS if limit == resource.RLIM_INFINITY else max(1, min(_MOST_REGIONS, limit // 4))

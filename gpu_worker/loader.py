"""From a model's directory to versions that serve, and back.

Everything here blocks and belongs into load threads. A load that fails leaves nothing behind: no thread starts before
every instance of every version is ready and warm.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import structlog

from gpu_worker.engine import batching, border, scheduler, spec, statistics, tensors
from gpu_worker.repository import completion, configuration, layout, support, tuning
from gpu_worker.runtime import devices, port
from protos.inference.v2 import model_config_pb2

_MAX_WARMUP_RUNS = 10_000

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is to be loaded: the configuration as far as it is known without the model, and a directory per version."""

    directory: layout.ModelDirectory
    config: model_config_pb2.ModelConfig
    options: port.SessionOptions
    versions: Mapping[int, pathlib.Path]


@dataclasses.dataclass(slots=True, eq=False)
class Version:
    """A model version that serves."""

    spec: spec.ModelSpec
    config: model_config_pb2.ModelConfig
    scheduler: scheduler.Scheduler
    counters: statistics.Statistics
    cost: statistics.LoadCost
    programs: tuple[weakref.ref[port.Program], ...]

    def statistics(self) -> border.ModelStatistics:
        return self.counters.snapshot(self.spec.name, self.spec.version, self.scheduler.waiting(), self.cost)


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """The instances of one version, not yet serving."""

    programs: tuple[port.Program, ...]
    cost: statistics.LoadCost


class Loader:
    """Loads models through one framework.

    The memory of a load is what the process, or the GPU, has more of afterwards: loads side by side blur each other's.
    """

    def __init__(self, runtime: port.Runtime, defaults: completion.Defaults) -> None:
        self._runtime = runtime
        self._defaults = defaults

    def plan(self, directory: layout.ModelDirectory, override: str | None) -> Plan:
        """Reads and checks what can be known before loading; `override` is a configuration in JSON, or None.

        Raises InferenceError.
        """
        name = directory.name
        if override is None:
            config = configuration.from_text(name, directory.config_text())
        else:
            config = configuration.from_json(name, override)
        support.check(config)
        configuration.fill(config, self._runtime.gpus())
        available = directory.versions()
        chosen = configuration.served_versions(config, available)
        options = tuning.options(config, self._defaults.parameters)
        return Plan(directory, config, options, {version: available[version] for version in chosen})

    def open(self, plan: Plan) -> dict[str, Version]:
        """Loads every version and lets it serve; the keys ascend. Raises InferenceError or port.LoadFailed."""
        opened: dict[int, _Opened] = {}
        for version, directory in plan.versions.items():
            opened[version] = self._open_version(plan, directory)
        # The highest version speaks for the model where the configuration is silent.
        speaker = opened[max(opened)].programs[0]
        completion.complete(plan.config, speaker.inputs, speaker.outputs, self._defaults)
        labels = _labels(plan)
        for each in opened.values():
            completion.check(plan.config, each.programs[0].inputs, each.programs[0].outputs)
            _warm_up(plan.config, each.programs)
        return {str(version): _serving(plan, str(version), each, labels) for version, each in opened.items()}

    def _open_version(self, plan: Plan, directory: pathlib.Path) -> _Opened:
        model = layout.inside(directory, plan.config.default_model_filename)
        if not model.exists():
            raise port.LoadFailed(f"version {directory.name} has no file '{plan.config.default_model_filename}'")
        started_s = time.monotonic()
        placements = list(_placements(plan.config))
        used = {device: devices.memory_in_use_bytes(device) for device, _ in placements}
        programs: list[port.Program] = []
        for device, count in placements:
            programs += self._instances(model, device, count, plan.options)
        grown = {
            (device.kind, device.ordinal): max(0, devices.memory_in_use_bytes(device) - before_bytes)
            for device, before_bytes in used.items()
        }
        return _Opened(tuple(programs), statistics.LoadCost(time.monotonic() - started_s, grown))

    def _instances(
        self, model: pathlib.Path, device: port.Device, count: int, options: port.SessionOptions
    ) -> list[port.Program]:
        first = self._runtime.load(model, device, options)
        if first.shareable:
            return [first] * count
        return [first] + [self._runtime.load(model, device, options) for _ in range(count - 1)]


def free(versions: Mapping[str, Version]) -> None:
    """Gives back what versions held that have been drained; call it with the last reference to them.

    Logs an error where a model's memory is still held by someone.
    """
    held = {name: version.programs for name, version in versions.items()}
    names = {version.spec.name for version in versions.values()}
    devices.reclaim()
    for version, programs in held.items():
        alive = sum(program() is not None for program in programs)
        if alive:
            log.error("model.memory_held", models=sorted(names), version=version, sessions=alive)


def _placements(config: model_config_pb2.ModelConfig) -> Iterator[tuple[port.Device, int]]:
    for group in config.instance_group:
        if group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU:
            for gpu in group.gpus:
                yield port.Device("GPU", gpu), group.count
        else:
            yield port.Device("CPU", 0), group.count


def _serving(plan: Plan, version: str, opened: _Opened, labels: Mapping[str, tuple[str, ...]]) -> Version:
    model = _spec(plan.config, version, labels)
    counters = statistics.Statistics()
    return Version(
        model,
        plan.config,
        scheduler.Scheduler(model, opened.programs, counters),
        counters,
        opened.cost,
        tuple(weakref.ref(program) for program in dict.fromkeys(opened.programs)),
    )


def _spec(config: model_config_pb2.ModelConfig, version: str, labels: Mapping[str, tuple[str, ...]]) -> spec.ModelSpec:
    dynamic = config.dynamic_batching
    policy = dynamic.default_queue_policy
    return spec.ModelSpec(
        name=config.name,
        version=version,
        platform=config.platform,
        max_batch_size=config.max_batch_size,
        inputs=tuple(
            spec.TensorSpec(each.name, completion.datatype(each.data_type), tuple(each.dims), each.optional)
            for each in config.input
        ),
        outputs=tuple(
            spec.TensorSpec(
                each.name, completion.datatype(each.data_type), tuple(each.dims), labels=labels.get(each.name, ())
            )
            for each in config.output
        ),
        batching=batching.Config(
            max_batch_size=config.max_batch_size,
            dynamic=config.HasField("dynamic_batching"),
            preferred_sizes=frozenset(dynamic.preferred_batch_size),
            max_delay_ns=dynamic.max_queue_delay_microseconds * 1000,
        ),
        queue=spec.QueuePolicy(
            policy.max_queue_size, policy.default_timeout_microseconds, allow_override=policy.allow_timeout_override
        ),
        preserve_ordering=dynamic.preserve_ordering,
    )


def _labels(plan: Plan) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for output in plan.config.output:
        if output.label_filename:
            path = plan.directory.inside(output.label_filename)
            try:
                found[output.name] = tuple(path.read_text(encoding="utf-8").splitlines())
            except (OSError, UnicodeDecodeError) as error:
                raise port.LoadFailed(f"label_filename of output '{output.name}' cannot be read: {error}") from error
    return found


def _warm_up(config: model_config_pb2.ModelConfig, programs: Sequence[port.Program]) -> None:
    outputs = [output.name for output in config.output]
    for warmup in config.model_warmup:
        if warmup.count > _MAX_WARMUP_RUNS:
            raise port.LoadFailed(f"model_warmup '{warmup.name}' count must be at most {_MAX_WARMUP_RUNS}")
        feeds = {
            name: _sample(each, warmup.batch_size if config.max_batch_size else 0)
            for name, each in warmup.inputs.items()
        }
        for program in dict.fromkeys(programs):
            for _ in range(max(1, warmup.count)):
                try:
                    program.run(feeds, outputs)
                except port.RunFailed as error:
                    raise port.LoadFailed(f"model_warmup '{warmup.name}' failed: {error}") from error


def _sample(wanted: model_config_pb2.ModelWarmup.Input, batch_size: int) -> tensors.Array:
    """Zeros, or the same random values at every load."""
    shape = ([batch_size] if batch_size else []) + list(wanted.dims)
    if any(dim < 0 for dim in shape):
        raise port.LoadFailed(f"model_warmup dims {shape} must not be variable")
    datatype = tensors.DATATYPES[completion.datatype(wanted.data_type)]
    generator = np.random.default_rng(0)
    if datatype.name == "BYTES":
        text = "warm-up" if wanted.random_data else ""
        return np.full(shape, text, dtype=object)
    if not wanted.random_data:
        return np.zeros(shape, datatype.dtype)
    if datatype.dtype.kind == "f":
        return generator.random(shape).astype(datatype.dtype)
    return generator.integers(0, 2 if datatype.name == "BOOL" else 127, shape).astype(datatype.dtype)

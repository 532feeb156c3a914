"""From a model's directory to versions that serve, and back.

Everything here blocks and belongs into load threads, but for `Opened.serve`. A load that fails leaves nothing behind: no
thread starts before every instance of every version is ready and warm. What serves already and is not touched by a
change is kept: only instances that are wanted beside it are loaded.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import structlog

from gpu_worker.engine import (
    batching,
    border,
    caching,
    controls,
    crew,
    ensemble,
    graph,
    holds,
    limiting,
    performing,
    scheduler,
    sequence_scheduler,
    serving,
    spec,
    statistics,
)
from gpu_worker.repository import (
    backends,
    batch_io,
    completion,
    configuration,
    ensembles,
    layout,
    rates,
    sequence_io,
    support,
    tuning,
    warmup,
)
from gpu_worker.runtime import devices, port
from protos.inference.v2 import model_config_pb2

_MAX_LABELS = 64 * 2**20

_Config = model_config_pb2.ModelConfig
_Instances = Sequence[tuple[port.Device, port.Program]]

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is to be loaded: the configuration as far as it is known without the model, and a directory per version.

    `basis` is all of the configuration that a version which stays must share, `choice` the rest: instances and which
    versions. `files` are the fingerprints by version and beside them (``""``), None where files came with the load.
    An ensemble has `steps` and nothing to load but these.
    """

    directory: layout.ModelDirectory
    config: _Config
    options: port.SessionOptions
    versions: Mapping[int, pathlib.Path]
    basis: bytes
    choice: bytes
    files: Mapping[str, layout.Fingerprint] | None
    steps: graph.Graph | None = None

    def keeps(self, version: int, earlier: Plan) -> bool:
        """Whether that version is the same as in the earlier plan, but for how many instances it has."""
        if self.files is None or earlier.files is None:
            return False
        alike = self.basis == earlier.basis and version in earlier.versions
        return alike and all(self.files.get(part) == earlier.files.get(part) for part in ("", str(version)))

    def equals(self, earlier: Plan) -> bool:
        """Whether nothing has changed."""
        return (
            self.choice == earlier.choice
            and self.versions.keys() == earlier.versions.keys()
            and all(self.keeps(version, earlier) for version in self.versions)
        )


@dataclasses.dataclass(slots=True, eq=False)
class Version:
    """A model version that serves. It does not hold its programs: they end with the scheduler's threads."""

    spec: spec.ModelSpec
    config: _Config
    scheduler: serving.Scheduler
    counters: statistics.Statistics
    cost: statistics.LoadCost
    instances: tuple[tuple[port.Device, weakref.ref[port.Program]], ...]
    gpu_uuid: str = ""
    holds: holds.Holds = dataclasses.field(default_factory=holds.Holds)
    steps: graph.Graph | None = None
    cached: bool = False

    def statistics(self) -> border.ModelStatistics:
        found = self.counters.snapshot(self.spec.name, self.spec.version, self.scheduler.waiting(), self.cost)
        tags = dict(self.config.metric_tags)
        return dataclasses.replace(found, tags=tags, gpu_uuid=self.gpu_uuid, cached=self.cached)

    def programs(self) -> list[tuple[port.Device, port.Program]]:
        """One for each instance that is alive."""
        alive = ((device, held()) for device, held in self.instances)
        return [(device, program) for device, program in alive if program is not None]


@dataclasses.dataclass(frozen=True, slots=True)
class Serving:
    """What a model serves, and the plan that it was loaded by."""

    plan: Plan
    versions: Mapping[str, Version]


@dataclasses.dataclass(frozen=True, slots=True)
class _Loaded:
    """Instances that are ready, not yet serving."""

    instances: _Instances
    cost: statistics.LoadCost = dataclasses.field(default_factory=statistics.LoadCost)

    @property
    def programs(self) -> list[port.Program]:
        return list(dict.fromkeys(program for _, program in self.instances))


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """What a version that stays is to have from now on."""

    version: Version
    config: _Config
    instances: _Instances
    cost: statistics.LoadCost

    def prepare(self) -> crew.Change:
        return self.version.scheduler.prepare([program for _, program in self.instances])


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """Versions ready to take over, ascending: `fresh` ones serve already, the others stay as they are until `serve`.

    Each change stands with what its scheduler has prepared for it: from here on nothing can fail.
    """

    versions: Mapping[str, Version]
    fresh: Sequence[Version]
    changes: Sequence[tuple[_Change, crew.Change]]
    gpu_uuid: str

    def serve(self) -> None:
        """Gives the versions that stay their new configuration and instances; does not block."""
        for change, prepared in self.changes:
            version = change.version
            version.config, version.cost, version.gpu_uuid = change.config, change.cost, self.gpu_uuid
            version.instances = _held(change.instances)
            version.scheduler.settle(prepared)

    def abandon(self) -> None:
        """Ends what is fresh; what stays is as it was."""
        for version in self.fresh:
            version.scheduler.abandon()
        for change, prepared in self.changes:
            change.version.scheduler.drop(prepared)


class Loader:
    """Loads models through the runtimes of their backends.

    The memory of a load is what the process, or the GPU, has more of afterwards: loads side by side blur each other's.
    """

    def __init__(
        self,
        runtimes: Mapping[str, port.Runtime],
        defaults: completion.Defaults,
        observed: statistics.Observed | None = None,
        cache: caching.Cache | None = None,
        limiter: limiting.Limiter | None = None,
    ) -> None:
        self._runtimes = runtimes
        self._defaults = defaults
        self._observed = observed or statistics.Observed()
        self._cache = cache
        self._limiter = limiter

    def plan(self, directory: layout.ModelDirectory, override: str | None, *, brought: bool = False) -> Plan:
        """Reads and checks what can be known before loading.

        `override` is a configuration in JSON, or None; `brought` tells that the directory came with the load. Raises
        InferenceError or port.LoadFailed.
        """
        try:
            return self._plan(directory, override, brought=brought)
        except OSError as error:
            raise port.LoadFailed(f"the model's directory cannot be read: {error}") from None

    def _plan(self, directory: layout.ModelDirectory, override: str | None, *, brought: bool) -> Plan:
        name = directory.name
        # Looked at before the configuration is read: what changes meanwhile differs at the next look.
        files = None if brought else directory.files()
        if override is None:
            config = configuration.from_text(name, directory.config_text())
        else:
            config = configuration.from_json(name, override)
        support.check(config)
        available = directory.versions()
        if ensembles.is_one(config):
            return self._ensemble(directory, config, available, files)
        backends.settle(config, (entry.name for path in available.values() for entry in path.iterdir()))
        configuration.fill(config, self._runtimes[config.backend].gpus())
        chosen = configuration.served_versions(config, available)
        return Plan(
            directory=directory,
            config=config,
            options=tuning.options(config, self._defaults.parameters),
            versions={version: available[version] for version in chosen},
            basis=_basis(config),
            choice=config.SerializeToString(deterministic=True),
            files=files,
        )

    def _ensemble(
        self,
        directory: layout.ModelDirectory,
        config: _Config,
        available: Mapping[int, pathlib.Path],
        files: Mapping[str, layout.Fingerprint] | None,
    ) -> Plan:
        steps = ensembles.steps(config)
        configuration.fill_common(config)
        config.model_transaction_policy.SetInParent()
        chosen = configuration.served_versions(config, available)
        return Plan(
            directory=directory,
            config=config,
            options=port.SessionOptions(),
            versions={version: available[version] for version in chosen},
            basis=_basis(config),
            choice=config.SerializeToString(deterministic=True),
            files=files,
            steps=steps,
        )

    def compose(
        self, plan: Plan, steps: graph.Graph, models: Mapping[tuple[str, str], spec.ModelSpec], find: ensemble.Find
    ) -> Opened:
        """The versions of an ensemble, over the composing models that serve now; `find` gives those of each request.

        Raises InferenceError or port.LoadFailed where they do not fit together.
        """
        labels = _labels(plan)
        observed = _observed(plan.config, self._observed)
        versions: dict[str, Version] = {}
        for number in sorted(plan.versions):
            model = _spec(plan.config, str(number), labels)
            graph.check_models(model, steps, models)
            counters = statistics.Statistics(observed)
            serves = ensemble.Ensemble(model, steps, find, counters)
            versions[str(number)] = Version(
                model, plan.config, serves, counters, statistics.LoadCost(), (), steps=steps
            )
        return Opened(versions, list(versions.values()), [], "")

    def open(self, plan: Plan, serving: Serving | None = None) -> Opened:
        """Loads every version that cannot stay. Raises InferenceError or port.LoadFailed, and may be tried again."""
        config = _Config()
        config.CopyFrom(plan.config)
        plan = dataclasses.replace(plan, config=config)
        self._ask_code(plan)
        there = _staying(plan, serving)
        loaded = self._loaded(plan, there)
        labels = _labels(plan)
        sequencing = sequence_io.sequencing(plan.config, plan.directory)
        specs = {number: _spec(plan.config, str(number), labels, sequencing) for number in plan.versions}
        for number, each in loaded.items():
            _warm_up(plan, specs[number], each.programs)
        changes = [self._change(plan, version, specs[number]) for number, version in there.items()]
        gpu_uuid = self._only_gpu(plan.config)
        fresh, prepared = self._begun(plan, specs, loaded, changes)
        for version in fresh.values():
            version.gpu_uuid = gpu_uuid
        versions = {str(number): fresh.get(number) or there[number] for number in sorted(plan.versions)}
        return Opened(versions, list(fresh.values()), prepared, gpu_uuid)

    def _loaded(self, plan: Plan, there: dict[int, Version]) -> dict[int, _Loaded]:
        """What must be loaded, with the configuration completed; takes out of `there` what cannot stay after all."""
        loaded = {number: self._load(plan, path) for number, path in plan.versions.items() if number not in there}
        speaker = _speaker(plan, loaded, there)
        completion.complete(plan.config, speaker.inputs, speaker.outputs, self._defaults)
        for number in [number for number, version in there.items() if _basis(version.config) != _basis(plan.config)]:
            del there[number]
            loaded[number] = self._load(plan, plan.versions[number])
        for each in loaded.values():
            completion.check(plan.config, each.programs[0].inputs, each.programs[0].outputs)
        return loaded

    def _ask_code(self, plan: Plan) -> None:
        """Lets the highest version's code complete the configuration, where the model is code."""
        if not self._defaults.auto_complete:
            return
        highest = max(plan.versions)
        path = layout.inside(plan.versions[highest], plan.config.default_model_filename)
        if not path.exists():
            return
        options = dataclasses.replace(plan.options, card=_card(plan, plan.versions[highest], f"{plan.config.name}_0_0"))
        found = self._runtimes[plan.config.backend].complete(path, options)
        if found is not None:
            completed = configuration.completed(plan.config, found)
            support.check(completed)
            support.check_backend(completed, completed.backend)
            plan.config.CopyFrom(completed)

    def _begun(
        self,
        plan: Plan,
        specs: Mapping[int, spec.ModelSpec],
        loaded: Mapping[int, _Loaded],
        changes: Sequence[_Change],
    ) -> tuple[dict[int, Version], list[tuple[_Change, crew.Change]]]:
        """Starts the threads of what is loaded: of all versions, or of none. Raises LoadFailed."""
        observed = _observed(plan.config, self._observed)
        fresh: dict[int, Version] = {}
        prepared: list[tuple[_Change, crew.Change]] = []
        try:
            for number, each in loaded.items():
                turns = rates.turns(plan.config, each.instances, self._limiter)
                fresh[number] = _fresh(plan.config, specs[number], each, observed, self._share(plan.config), turns)
            for change in changes:
                begun = change.prepare()
                prepared.append((change, begun))
        except BaseException:
            Opened({}, list(fresh.values()), prepared, "").abandon()
            raise
        return fresh, prepared

    def _share(self, config: _Config) -> caching.Share | None:
        """The model's share of the cache: a new one with every load, so that no answer outlives its model.

        None where the same request need not have the same one answer.
        """
        varies = config.HasField("sequence_batching") or config.model_transaction_policy.decoupled
        if self._cache is None or varies or not config.response_cache.enable:
            return None
        return caching.Share(self._cache)

    def _only_gpu(self, config: _Config) -> str:
        """The name of the GPU that all instances are on; empty where there are others."""
        where = {device for device, _ in _placements(config)}
        return self._runtimes[config.backend].uuid(where.pop()) if len(where) == 1 else ""

    def _change(self, plan: Plan, version: Version, model: spec.ModelSpec) -> _Change:
        """What a version that stays is to have from now on; loads the instances that it has not."""
        left = version.programs()
        staying: list[tuple[port.Device, list[port.Program], int]] = []
        for device, count in _placements(plan.config):
            mine = [program for where, program in left if where == device][:count]
            left = _without(left, device, count)
            if mine and mine[0].shareable:
                mine += [mine[0]] * (count - len(mine))
            staying.append((device, mine, count - len(mine)))
        missing = [(device, count) for device, _, count in staying if count]
        first_index = sum(len(mine) for _, mine, _ in staying)
        loaded = self._load(plan, plan.versions[int(model.version)], missing, first_index)
        _warm_up(plan, model, loaded.programs)
        added = iter(loaded.instances)
        instances: list[tuple[port.Device, port.Program]] = []
        for device, mine, count in staying:
            instances += [*((device, program) for program in mine), *itertools.islice(added, count)]
        return _Change(version, plan.config, instances, _cost_of(version, instances, loaded.cost))

    def _load(
        self,
        plan: Plan,
        directory: pathlib.Path,
        wanted: Sequence[tuple[port.Device, int]] | None = None,
        first_index: int = 0,
    ) -> _Loaded:
        """So many instances on those devices, all of the configuration unless given."""
        started_s = time.monotonic()
        placements = list(_placements(plan.config)) if wanted is None else wanted
        used = {device: devices.memory_in_use_bytes(device) for device, _ in placements}
        instances: list[tuple[port.Device, port.Program]] = []
        for device, count in placements:
            found = self._instances(plan, directory, device, count, first_index + len(instances))
            instances += [(device, program) for program in found]
        grown = {
            _place(device): max(0, devices.memory_in_use_bytes(device) - before_bytes)
            for device, before_bytes in used.items()
        }
        return _Loaded(tuple(instances), statistics.LoadCost(time.monotonic() - started_s, grown))

    def _instances(
        self, plan: Plan, directory: pathlib.Path, device: port.Device, count: int, first_index: int = 0
    ) -> list[port.Program]:
        runtime = self._runtimes[plan.config.backend]
        name = plan.config.default_model_filename
        if plan.config.cc_model_filenames:
            name = plan.config.cc_model_filenames.get(runtime.capability(device), name)
        model = layout.inside(directory, name)
        if not model.exists():
            raise port.LoadFailed(f"version {directory.name} has no file '{name}'")
        programs: list[port.Program] = []
        for index in range(first_index, first_index + count):
            options = plan.options
            if plan.config.backend == configuration.PYTHON:
                card = _card(plan, directory, f"{plan.config.instance_group[0].name}_{index}", f"KIND_{device.kind}")
                options = dataclasses.replace(options, card=card)
            programs.append(runtime.load(model, device, options))
            if programs[0].shareable:
                return programs * count
        return programs


def free(versions: Mapping[str, Version]) -> None:
    """Gives back what versions held that have been drained; call it with the last reference to them.

    Logs an error where a model's memory is still held by someone.
    """
    names = {version.spec.name for version in versions.values()}
    devices.reclaim()
    for name, version in versions.items():
        alive = len({id(program) for _, program in version.programs()})
        if alive:
            log.error("model.memory_held", models=sorted(names), version=name, sessions=alive)


def _basis(config: _Config) -> bytes:
    shared = _Config()
    shared.CopyFrom(config)
    if not any(group.HasField("rate_limiter") for group in config.instance_group):
        # Else it says of single instances what they need.
        shared.ClearField("instance_group")
    shared.ClearField("version_policy")
    return shared.SerializeToString(deterministic=True)


def _staying(plan: Plan, serving: Serving | None) -> dict[int, Version]:
    """The versions that serve and need not be loaded anew."""
    if serving is None:
        return {}
    return {
        number: serving.versions[str(number)]
        for number in plan.versions
        if str(number) in serving.versions and plan.keeps(number, serving.plan)
    }


def _speaker(plan: Plan, loaded: Mapping[int, _Loaded], there: Mapping[int, Version]) -> port.Program:
    """The highest version speaks for the model where the configuration is silent."""
    highest = max(plan.versions)
    instances = loaded[highest].instances if highest in loaded else there[highest].programs()
    if not instances:
        raise port.LoadFailed(f"version {highest} ended while it was to stay: load the model again")
    return instances[0][1]


def _placements(config: _Config) -> Iterator[tuple[port.Device, int]]:
    for group in config.instance_group:
        if group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU:
            for gpu in group.gpus:
                yield port.Device("GPU", gpu), group.count
        else:
            yield port.Device("CPU", 0), group.count


def _without(
    instances: Iterable[tuple[port.Device, port.Program]], device: port.Device, count: int
) -> list[tuple[port.Device, port.Program]]:
    """The instances but for the first `count` of that device."""
    left = []
    for where, program in instances:
        if where == device and count > 0:
            count -= 1
        else:
            left.append((where, program))
    return left


def _place(device: port.Device) -> tuple[str, int]:
    return device.kind, device.ordinal


def _cost_of(version: Version, instances: _Instances, added: statistics.LoadCost) -> statistics.LoadCost:
    """What a version with other instances costs: sessions that leave take their share of the bytes along."""
    had = dict.fromkeys((_place(device), id(program)) for device, program in version.programs())
    kept = dict.fromkeys((_place(device), id(program)) for device, program in instances)
    before = collections.Counter(place for place, _ in had)
    after = collections.Counter(place for place, _ in had.keys() & kept.keys())
    memory_bytes = {
        place: held_bytes * after[place] // before[place]
        for place, held_bytes in version.cost.memory_bytes.items()
        if after[place]
    }
    for place, more_bytes in added.memory_bytes.items():
        memory_bytes[place] = memory_bytes.get(place, 0) + more_bytes
    return dataclasses.replace(version.cost, memory_bytes=memory_bytes)


def _card(plan: Plan, directory: pathlib.Path, instance: str, kind: str = "KIND_CPU") -> port.Card:
    config = configuration.to_json(plan.config)
    return port.Card(plan.config.name, directory.name, plan.directory.path, config, instance, kind)


def _held(instances: _Instances) -> tuple[tuple[port.Device, weakref.ref[port.Program]], ...]:
    return tuple((device, weakref.ref(program)) for device, program in instances)


def _observed(config: _Config, observed: statistics.Observed) -> statistics.Observed:
    """A model may have bounds of its own, where the histogram is kept at all."""
    bounds = configuration.first_response_bounds(config)
    return dataclasses.replace(observed, bounds_ms=bounds) if bounds and observed.bounds_ms else observed


def _fresh(
    config: _Config,
    model: spec.ModelSpec,
    loaded: _Loaded,
    observed: statistics.Observed,
    share: caching.Share | None,
    turns: limiting.Turns | None,
) -> Version:
    counters = statistics.Statistics(observed)
    programs = [program for _, program in loaded.instances]
    held = _held(loaded.instances)
    serves: serving.Scheduler
    if model.sequencing is None:
        serves = scheduler.Scheduler(model, programs, counters, share, turns)
    else:
        serves = sequence_scheduler.SequenceScheduler(model, programs, counters)
    return Version(model, config, serves, counters, loaded.cost, held, cached=share is not None)


def _spec(
    config: _Config,
    version: str,
    labels: Mapping[str, tuple[str, ...]],
    sequencing: controls.Sequencing | None = None,
) -> spec.ModelSpec:
    dynamic = config.dynamic_batching
    sources = batch_io.sources(config)
    return spec.ModelSpec(
        name=config.name,
        version=version,
        platform=config.platform or config.backend,
        max_batch_size=config.max_batch_size,
        inputs=tuple(
            dataclasses.replace(_tensor(each), optional=each.optional, ragged=each.allow_ragged_batch)
            for each in config.input
        ),
        outputs=tuple(
            dataclasses.replace(_tensor(each), labels=labels.get(each.name, ()), source=sources.get(each.name, ""))
            for each in config.output
        ),
        batch_inputs=batch_io.inputs(config),
        batching=batching.Config(
            max_batch_size=config.max_batch_size,
            dynamic=config.HasField("dynamic_batching"),
            preferred_sizes=frozenset(dynamic.preferred_batch_size),
            max_delay_ns=dynamic.max_queue_delay_microseconds * 1000,
        ),
        queue=_policy(dynamic.default_queue_policy),
        priorities=spec.Priorities(
            dynamic.priority_levels,
            dynamic.default_priority_level,
            {level: _policy(each) for level, each in dynamic.priority_queue_policy.items()},
        ),
        preserve_ordering=dynamic.preserve_ordering or config.sequence_batching.oldest.preserve_ordering,
        performs=config.backend == configuration.PYTHON,
        decoupled=config.model_transaction_policy.decoupled,
        sequencing=sequencing,
    )


def _policy(given: model_config_pb2.ModelQueuePolicy) -> spec.QueuePolicy:
    return spec.QueuePolicy(
        given.max_queue_size,
        given.default_timeout_microseconds,
        allow_override=given.allow_timeout_override,
        delays=given.timeout_action == model_config_pb2.ModelQueuePolicy.DELAY,
    )


def _tensor(declared: model_config_pb2.ModelInput | model_config_pb2.ModelOutput) -> spec.TensorSpec:
    reshape = tuple(declared.reshape.shape) if declared.HasField("reshape") else None
    datatype = completion.datatype(declared.data_type)
    return spec.TensorSpec(declared.name, datatype, tuple(declared.dims), reshape=reshape)


def _labels(plan: Plan) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for output in plan.config.output:
        if output.label_filename:
            path = plan.directory.inside(output.label_filename)
            try:
                with path.open(encoding="utf-8") as file:
                    text = file.read(_MAX_LABELS + 1)
                if len(text) > _MAX_LABELS:
                    raise port.LoadFailed(f"label_filename of output '{output.name}' is longer than {_MAX_LABELS}")
                found[output.name] = tuple(text.splitlines())
            except (OSError, UnicodeDecodeError) as error:
                raise port.LoadFailed(f"label_filename of output '{output.name}' cannot be read: {error}") from error
    return found


def _warm_up(plan: Plan, model: spec.ModelSpec, programs: Sequence[port.Program]) -> None:
    if not (programs and plan.config.model_warmup):
        return
    outputs = list(model.outputs_by_name)
    for sample in warmup.samples(plan.config, model, plan.directory):
        feeds = sample.feeds
        if model.sequencing is not None:
            feeds = {**feeds, **controls.feeds(model.sequencing, controls.sample(sample.size))}
        for program in programs:
            for _ in range(sample.runs):
                try:
                    if model.performs:
                        performing.try_out(cast("port.Performer", program), model, feeds)
                    else:
                        program.run(feeds, outputs)
                except port.RunFailed as error:
                    raise port.LoadFailed(f"model_warmup '{sample.name}' failed: {error}") from error

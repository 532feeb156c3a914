"""The life of every model: which versions serve, which load or unload, and why one is not available.

All state belongs to one event loop; only loading, draining and reading directories happen in threads. Loads and unloads
of one model follow each other, those of different models do not wait. A reload serves the new before it drains the old;
one that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent import futures
from typing import Any, Protocol, TypeVar

import structlog

from gpu_worker import composition, loader, models
from gpu_worker.engine import border, graph, running, serving, spec
from gpu_worker.models import State
from gpu_worker.repository import layout, override
from gpu_worker.runtime import devices, port

_CLOSE_S = 5.0
_STEP_S = 1.0
_REMEMBERED = 4096
_MAX_REASON = 2000
_MAX_NAME = 255
_LOOKUPS = 2

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Lacking:
    """A load that must wait for models that are to be loaded before."""

    names: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Prepared:
    """A load that can begin; `temporary` holds the files that came with it."""

    plan: loader.Plan
    temporary: layout.ModelDirectory | None


class Listener(Protocol):
    """Who hears what becomes of models, in the order in which it does, on the event loop."""

    def loaded(self, name: str) -> None:
        """The model serves."""
        ...

    def failed(self, name: str) -> None:
        """It was tried and could not be loaded; an earlier load of it may serve on."""
        ...

    def dropped(self, name: str) -> None:
        """It is about to serve no more, or is forgotten."""
        ...


class Registry:
    """The models of one worker; `listener` is to be set before the first of them is loaded."""

    listener: Listener

    def __init__(self, repository: layout.Repository, opener: loader.Loader, threads: int, retries: int = 0) -> None:
        self._repository = repository
        self._loader = opener
        self._retries = retries
        self._files = override.Store()
        self._pool = futures.ThreadPoolExecutor(max(1, threads), thread_name_prefix="load")
        # Loads may take minutes: who asks what there is must not wait for them.
        self._lookups = futures.ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="look")
        self._models: dict[str, models.Model] = {}
        self._retiring: set[loader.Version] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._closed = False

    async def names(self) -> list[str]:
        """Every model in the repositories. Raises InferenceError where one cannot be read."""
        return await self._looked_up(self._repository.names)

    async def scan(self) -> dict[str, layout.Fingerprint | None]:
        """What every model's directory holds now. Raises InferenceError where a repository cannot be read."""
        return await self._looked_up(self._repository.scan)

    async def sweep(self) -> None:
        """Removes what workers that died have left of models that came with their load calls."""
        await self._looked_up(self._files.sweep)

    def version(self, name: str, version: str) -> loader.Version:
        """The version, or the highest served; raises InferenceError NOT_FOUND where it does not serve."""
        found = self._find(name, version)
        if found is None:
            raise _unknown(name, version)
        return found

    def version_for_inference(self, name: str, version: str) -> loader.Version:
        """As `version`, told apart from a model that is known and serves nothing."""
        found = self._find(name, version)
        if found is None:
            if name in self._models and not version:
                raise border.InferenceError(
                    border.ErrorKind.NOT_FOUND, f"Request for unknown model: '{name}' has no available versions"
                )
            raise _unknown(name, version)
        return found

    def versions(self, name: str) -> tuple[str, ...]:
        """Versions that serve, ascending."""
        model = self._models.get(name)
        return tuple(model.versions) if model else ()

    def ready(self, name: str, version: str) -> bool:
        found = self._find(name, version)
        return found is not None and found.scheduler.available

    def statistics(self, name: str, version: str) -> list[border.ModelStatistics]:
        """Of one version, one model, or (`name` empty) all; raises InferenceError INVALID_ARGUMENT for an unknown one."""
        if not name:
            known = sorted(self._models.values(), key=lambda model: model.name)
            return [each.statistics() for model in known for each in model.versions.values()]
        model = self._models.get(name)
        found = [each for number, each in (model.versions if model else {}).items() if version in {"", number}]
        if not found:
            which = f", version {version}," if version else ""
            raise border.InferenceError(
                border.ErrorKind.INVALID_ARGUMENT, f"requested model '{name}'{which} is not available"
            )
        return [each.statistics() for each in found]

    async def index(self, *, ready: bool) -> list[border.IndexEntry]:
        """Every model in the repositories or ever touched; with `ready` only versions that serve."""
        refusals = await self._looked_up(self._repository.refusals)
        entries: list[border.IndexEntry] = []
        for name in sorted({*refusals, *self._models}):
            model = self._models.get(name)
            states = model.current() if model else {}
            if refusals.get(name) and not (model and model.versions):
                states = {"": (State.UNAVAILABLE, refusals[name])}
            entries += [
                border.IndexEntry(name, version, state.value, reason)
                for version, (state, reason) in states.items()
                if not ready or state is State.READY
            ]
            if not states and not ready:
                entries.append(border.IndexEntry(name))
        return entries

    async def load(self, name: str, parameters: models.Parameters) -> None:
        """Returns once the model serves; goes on when the caller does not wait any longer. Raises InferenceError."""
        if self._stopping:
            raise running.stopping()
        if len(name) > _MAX_NAME:
            raise models.invalid(f"the name of a model must have at most {_MAX_NAME} characters, not {len(name)}")
        try:
            models.parsed(parameters)
        except border.InferenceError as error:
            raise border.InferenceError(error.kind, f"load failed for model '{name}': {error.message}") from None
        if not any(key.startswith(models.FILE) for key in parameters):
            await self._require(name)
        elif not layout.is_name(name):
            raise models.invalid(f"load failed for model '{name}': {layout.NO_NAME}")
        self._bound()
        model = self._models.setdefault(name, models.Model(name))
        models.enter(model)
        model.explicit = True
        await asyncio.shield(self._spawn(self._load(model, parameters)))

    async def unload(self, name: str, *, unload_dependents: bool = False) -> None:
        """Returns once the model serves no more requests; what it has accepted is answered first.

        Ensembles of it end as well, and serve again when it does. With `unload_dependents` the models that an ensemble is
        composed of go too, unless somebody asked for them, or another ensemble needs them.
        """
        model = self._models.get(name)
        if model is None:
            self.listener.dropped(name)
            return
        begun = asyncio.Event()
        models.enter(model)
        self._spawn(self._unload(model, begun, cascade=unload_dependents))
        await begun.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Takes no more requests and waits for the accepted ones; true if all were done in time."""
        self._stopping = True
        until_s = time.monotonic() + timeout_s
        done = True
        # Ensembles first: what they have accepted is still to be asked of others.
        for wave in self._waves():
            for each in wave:
                each.stop()
            done &= await asyncio.to_thread(_joined, wave, until_s)
        return done

    def _waves(self) -> list[list[serving.Scheduler]]:
        living = self._living()
        composed: dict[str, frozenset[str]] = {}
        for each in living:
            if each.steps is not None:
                composed[each.spec.name] = composed.get(each.spec.name, frozenset()) | each.steps.names
        waves = composition.waves({each.spec.name for each in living}, composed)
        return [[each.scheduler for each in living if each.spec.name in wave] for wave in waves]

    async def close(self) -> None:
        """Ends all threads and frees all models; waits a few seconds at most for what cannot be interrupted."""
        self._stopping = self._closed = True
        for version in self._living():
            version.scheduler.abandon()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_CLOSE_S)
        left = [version.scheduler for version in self._living()]
        for each in left:
            each.abandon()
        if not await asyncio.to_thread(_joined, left, time.monotonic() + _CLOSE_S):
            log.warning("engine.threads_left")
        for model in self._models.values():
            self._forget(model)
        for pool in (self._pool, self._lookups):
            pool.shutdown(wait=False, cancel_futures=True)
        self._files.close()

    def _find(self, name: str, version: str) -> loader.Version | None:
        model = self._models.get(name)
        if model is None:
            return None
        return model.versions.get(version) if version else model.highest

    def _living(self) -> list[loader.Version]:
        serving = [version for model in self._models.values() for version in model.versions.values()]
        return [*serving, *self._retiring]

    def _bound(self) -> None:
        """Forgets models that serve nothing once there are very many: names come and go for months."""
        if len(self._models) >= _REMEMBERED:
            idle = [name for name, model in self._models.items() if not model.versions and not model.calls]
            for name in idle:
                del self._models[name]
                self.listener.dropped(name)

    async def _require(self, name: str) -> None:
        """Refuses a name that no repository holds before a trace of it is kept."""
        try:
            await self._looked_up(lambda: self._repository.find(name))
        except border.InferenceError as error:
            if error.kind is border.ErrorKind.INTERNAL:
                raise

    async def _load(self, model: models.Model, parameters: models.Parameters, above: tuple[str, ...] = ()) -> None:
        """Loads a model, and before that what it is composed of; `above` are the ensembles that it is loaded for."""
        tried: frozenset[str] = frozenset()
        try:
            while (lacking := await self._turn(model, parameters, tried)) is not None:
                tried |= lacking.names
                # Without the lock: models that are composed of each other would wait for each other.
                await self._load_composing(sorted(lacking.names), (*above, model.name))
        finally:
            model.calls -= 1
        await self._follow(model.name)

    async def _turn(self, model: models.Model, parameters: models.Parameters, tried: frozenset[str]) -> _Lacking | None:
        async with model.lock:
            outcome = await self._attempt(model, parameters, tried)
            if isinstance(outcome, _Lacking):
                return outcome
            self._tell(model.name, outcome)
            if outcome is not None:
                # Raised only here: an error that carries the frames of the load would keep its sessions alive.
                await self._in_pool(devices.reclaim)
                raise outcome
            return None

    async def _load_composing(self, names: Sequence[str], above: tuple[str, ...]) -> None:
        """Loads what does not serve; what cannot be is told by the ensemble's own load."""
        await asyncio.gather(
            *(self._load_one(name, above) for name in names if name not in above), return_exceptions=True
        )

    async def _load_one(self, name: str, above: tuple[str, ...]) -> None:
        await self._require(name)
        model = self._models.setdefault(name, models.Model(name))
        if model.calls:
            # Somebody loads it already: what becomes of that counts.
            async with model.lock:
                if model.versions or model.failed:
                    return
        # Without the bound on calls: no more come than ensembles are loaded.
        model.calls += 1
        await self._load(model, {}, above)

    async def _follow(self, name: str) -> None:
        """Lets ensembles follow a model that they are composed of, and that was loaded."""
        for each in self._dependents(name):
            if each.versions and each.plan is not None and each.plan.steps is not None:
                self._recheck(each, each.plan.steps)
        back = [each for each in self._dependents(name) if each.stranded and each.calls < models.MOST_CALLS]
        for each in back:
            models.enter(each)
        await asyncio.gather(*(self._load(each, each.parameters) for each in back), return_exceptions=True)

    def _recheck(self, model: models.Model, steps: graph.Graph) -> None:
        try:
            found = self._composing(model, steps)
            for version in model.versions.values():
                graph.check_models(version.spec, steps, found)
        except border.InferenceError as error:
            self._strand(model, error.message)

    def _strand(self, model: models.Model, reason: str) -> None:
        """Ends an ensemble until the models that it is composed of let it serve again."""
        log.warning("model.stranded", model=model.name, reason=reason)
        versions, files = model.versions, model.temporary
        model.serve({})
        model.plan = model.temporary = None
        model.mark(list(versions), State.UNAVAILABLE, reason)
        model.stranded = True
        self.listener.dropped(model.name)
        self._retire(versions, files)
        self._strand_dependents(model.name)

    def _strand_dependents(self, name: str) -> None:
        for each in self._dependents(name):
            if each.versions:
                self._strand(each, models.UNLOADED)

    def _dependents(self, name: str) -> list[models.Model]:
        return [self._models[each] for each in composition.dependents(name, self._composed())]

    def _composed(self) -> composition.Composed:
        return {name: model.composing for name, model in self._models.items() if model.composing}

    def _composing(self, model: models.Model, steps: graph.Graph) -> dict[tuple[str, str], spec.ModelSpec]:
        return composition.needed(model.name, steps, self._composed(), self._models.get)

    def _tell(self, name: str, failure: border.InferenceError | None) -> None:
        if failure is None:
            self.listener.loaded(name)
        # What cannot be tried, or is not there at all, is not to be loaded.
        elif failure.kind not in {border.ErrorKind.INTERNAL, border.ErrorKind.UNAVAILABLE}:
            self.listener.failed(name)

    async def _attempt(
        self, model: models.Model, parameters: models.Parameters, tried: frozenset[str]
    ) -> border.InferenceError | _Lacking | None:
        """Loads the model; what went wrong, if anything did, or what is to be loaded before and was not tried yet."""
        model.stranded = False
        try:
            prepared = await self._in_pool(lambda: self._prepare(model, parameters))
            steps = prepared.plan.steps
            model.composing = steps.names if steps is not None else frozenset()
            model.parameters = parameters if steps is not None else {}
            lacking = frozenset(name for name in model.composing - tried if not self.versions(name))
            if lacking:
                if not model.versions:
                    model.mark([str(version) for version in prepared.plan.versions], State.LOADING)
                _remove(prepared.temporary)
                return _Lacking(lacking)
            serving = model.serving()
            if serving is None or not prepared.plan.equals(serving.plan):
                await self._replace(model, prepared, serving)
        except border.InferenceError as error:
            if error.kind in {border.ErrorKind.INTERNAL, border.ErrorKind.UNAVAILABLE}:
                return error.bare()
            return self._failed(model, error.kind, error.message)
        except port.LoadFailed as error:
            return self._failed(model, border.ErrorKind.INVALID_ARGUMENT, str(error))
        except Exception as error:
            log.exception("model.load_broken", model=model.name)
            return self._failed(model, border.ErrorKind.INVALID_ARGUMENT, repr(error))
        return None

    def _prepare(self, model: models.Model, parameters: models.Parameters) -> _Prepared:
        config, files = models.parsed(parameters)
        temporary = self._files.write(model.name, files) if files else None
        try:
            directory = temporary or self._repository.find(model.name)
            return _Prepared(self._loader.plan(directory, config, brought=temporary is not None), temporary)
        except BaseException:
            _remove(temporary)
            raise

    async def _replace(self, model: models.Model, prepared: _Prepared, serving: loader.Serving | None) -> None:
        plan = prepared.plan
        numbers = [str(version) for version in plan.versions]
        log.info("model.loading", model=model.name, versions=numbers)
        if not model.versions:
            model.mark(numbers, State.LOADING)
        try:
            if plan.steps is None:
                opened = await self._open(plan, serving)
            else:
                opened = await self._compose(model, plan, plan.steps)
        except BaseException:
            _remove(prepared.temporary)
            raise
        if self._stopping:
            opened.abandon()
            _remove(prepared.temporary)
            raise running.stopping()
        staying = set(opened.versions.values())
        old = {number: version for number, version in model.versions.items() if version not in staying}
        old_files = model.temporary
        opened.serve()
        model.serve(dict(opened.versions))
        model.mark(numbers, State.READY)
        model.plan, model.temporary = plan, prepared.temporary
        log.info("model.loaded", model=model.name, versions=numbers, fresh=[each.spec.version for each in opened.fresh])
        self._retire(old, old_files)

    async def _compose(self, model: models.Model, plan: loader.Plan, steps: graph.Graph) -> loader.Opened:
        found = self._composing(model, steps)
        opened = await self._in_pool(lambda: self._loader.compose(plan, steps, found, self.version_for_inference))
        # Composing models may have gone or changed meanwhile.
        for version in opened.fresh:
            graph.check_models(version.spec, steps, self._composing(model, steps))
        return opened

    async def _open(self, plan: loader.Plan, serving: loader.Serving | None) -> loader.Opened:
        for attempt in range(self._retries):
            try:
                return await self._in_pool(lambda: self._loader.open(plan, serving))
            except (border.InferenceError, port.LoadFailed) as error:
                log.warning("model.load_retried", model=plan.config.name, attempt=attempt + 1, reason=str(error))
        return await self._in_pool(lambda: self._loader.open(plan, serving))

    def _failed(self, model: models.Model, kind: border.ErrorKind, reason: str) -> border.InferenceError:
        reason = reason[:_MAX_REASON]
        log.warning("model.load_failed", model=model.name, reason=reason)
        if not model.versions:
            model.mark(list(model.states) or [""], State.UNAVAILABLE, reason)
            model.stranded = bool(model.composing)
        return border.InferenceError(kind, f"load failed for model '{model.name}': {reason}")

    async def _unload(self, model: models.Model, begun: asyncio.Event, *, cascade: bool) -> None:
        try:
            async with model.lock:
                self.listener.dropped(model.name)
                composing, model.composing = model.composing, frozenset()
                model.stranded = model.explicit = False
                self._strand_dependents(model.name)
                versions = model.versions
                model.serve({})
                if versions:
                    model.mark(list(versions), State.UNLOADING)
                if cascade:
                    self._unload_unneeded(sorted(composing))
                begun.set()
                if not versions:
                    return
                log.info("model.unloading", model=model.name, versions=list(versions))
                files, model.temporary, model.plan = model.temporary, None, None
                await self._end(versions, files)
                model.mark(list(model.states), State.UNAVAILABLE, models.UNLOADED)
                log.info("model.unloaded", model=model.name)
        finally:
            model.calls -= 1
            begun.set()

    def _unload_unneeded(self, names: Sequence[str]) -> None:
        """Unloads models that were loaded for an ensemble alone and that none needs any more."""
        for name in names:
            model = self._models.get(name)
            needed = model is None or model.explicit or self._dependents(name)
            if model is not None and not needed and model.calls < models.MOST_CALLS:
                models.enter(model)
                self._spawn(self._unload(model, asyncio.Event(), cascade=True))

    def _retire(self, versions: dict[str, loader.Version], files: layout.ModelDirectory | None) -> None:
        if versions:
            self._spawn(self._end(versions, files))

    async def _end(self, versions: dict[str, loader.Version], files: layout.ModelDirectory | None) -> None:
        """Lets versions that serve no more finish what they have accepted, then frees them."""
        self._retiring.update(versions.values())
        # Requests of ensembles that began with these versions end with them.
        await asyncio.gather(*(each.holds.free() for each in versions.values()))
        for each in versions.values():
            each.scheduler.stop()
        ending = [each.scheduler for each in versions.values()]
        while not await asyncio.to_thread(_joined, ending, time.monotonic() + _STEP_S):
            if self._closed:
                return
        for each in versions.values():
            self._retiring.discard(each)
        await asyncio.to_thread(loader.free, versions)
        _remove(files)

    def _forget(self, model: models.Model) -> None:
        model.serve({})
        model.mark(list(model.states), State.UNAVAILABLE, models.UNLOADED)
        _remove(model.temporary)
        model.temporary = None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # Asked for here, so that a failure whose caller has gone does not count as one that nobody saw.
        if not task.cancelled() and task.exception() is not None:
            log.debug("task.failed", error=str(task.exception()))

    async def _looked_up(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._lookups, work)

    async def _in_pool(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _joined(running: Sequence[serving.Scheduler], until_s: float) -> bool:
    """Blocks until all have ended, at most until that monotonic time; true if they have."""
    return all(each.join(until_s) for each in running)


def _remove(directory: layout.ModelDirectory | None) -> None:
    if directory is not None:
        override.remove(directory.path)


def _unknown(name: str, version: str) -> border.InferenceError:
    which = f" version {version}" if version else ""
    return border.InferenceError(border.ErrorKind.NOT_FOUND, f"Request for unknown model: '{name}'{which} is not found")

"""The life of every model: which versions serve, which load or unload, and why one is not available.

All state belongs to one event loop; only loading, draining and reading directories happen in threads. Loads and unloads
of one model follow each other, those of different models do not wait. A reload serves the new before it drains the old;
one that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol, TypeVar

import structlog

from gpu_worker import loader
from gpu_worker.engine import border, scheduler
from gpu_worker.repository import layout, override
from gpu_worker.runtime import devices, port

_CLOSE_S = 5.0
_STEP_S = 1.0
_REMEMBERED = 4096
_MOST_CALLS = 32
_MAX_REASON = 2000
_MAX_NAME = 255
_LOOKUPS = 2
_FILE = "file:"

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


class State(enum.Enum):
    """Where a model version stands, in the words of the repository index."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclasses.dataclass(frozen=True, slots=True)
class _Prepared:
    """A load that can begin; `temporary` holds the files that came with it."""

    plan: loader.Plan
    temporary: layout.ModelDirectory | None


class _Model:
    """One model ever touched.

    `versions` serve, ascending; `states` tell about those and the ones that do not. `calls` are the loads and unloads
    that wait or run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.calls = 0
        self.versions: dict[str, loader.Version] = {}
        self.highest: loader.Version | None = None
        self.states: dict[str, tuple[State, str]] = {}
        self.plan: loader.Plan | None = None
        self.temporary: layout.ModelDirectory | None = None

    def serve(self, versions: dict[str, loader.Version]) -> None:
        self.versions = versions
        self.highest = next(reversed(versions.values()), None)

    def serving(self) -> loader.Serving | None:
        return loader.Serving(self.plan, self.versions) if self.plan and self.versions else None

    def mark(self, versions: Sequence[str], state: State, reason: str = "") -> None:
        self.states = dict.fromkeys(versions, (state, reason))


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
        self._models: dict[str, _Model] = {}
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
        return self._find(name, version) is not None

    def statistics(self, name: str, version: str) -> list[border.ModelStatistics]:
        """Of one version, one model, or (`name` empty) all; raises InferenceError INVALID_ARGUMENT for an unknown one."""
        if not name:
            models = sorted(self._models.values(), key=lambda model: model.name)
            return [each.statistics() for model in models for each in model.versions.values()]
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
            states = model.states if model else {}
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

    async def load(self, name: str, parameters: Mapping[str, border.Parameter | bytes]) -> None:
        """Returns once the model serves; goes on when the caller does not wait any longer. Raises InferenceError."""
        if self._stopping:
            raise scheduler.stopping()
        if len(name) > _MAX_NAME:
            raise _invalid(f"the name of a model must have at most {_MAX_NAME} characters, not {len(name)}")
        try:
            _parsed(parameters)
        except border.InferenceError as error:
            raise border.InferenceError(error.kind, f"load failed for model '{name}': {error.message}") from None
        if not any(key.startswith(_FILE) for key in parameters):
            await self._require(name)
        self._bound()
        model = self._models.setdefault(name, _Model(name))
        _enter(model)
        await asyncio.shield(self._spawn(self._load(model, parameters)))

    async def unload(self, name: str) -> None:
        """Returns once the model serves no more requests; what it has accepted is answered first."""
        model = self._models.get(name)
        if model is None:
            self.listener.dropped(name)
            return
        begun = asyncio.Event()
        _enter(model)
        self._spawn(self._unload(model, begun))
        await begun.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Takes no more requests and waits for the accepted ones; true if all were done in time."""
        self._stopping = True
        running = [version.scheduler for version in self._living()]
        for each in running:
            each.stop()
        until_s = time.monotonic() + timeout_s
        return await asyncio.to_thread(_joined, running, until_s)

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

    async def _load(self, model: _Model, parameters: Mapping[str, border.Parameter | bytes]) -> None:
        try:
            async with model.lock:
                failure = await self._attempt(model, parameters)
                self._tell(model.name, failure)
                if failure is not None:
                    # Raised only here: an error that carries the frames of the load would keep its sessions alive.
                    await self._in_pool(devices.reclaim)
                    raise failure
        finally:
            model.calls -= 1

    def _tell(self, name: str, failure: border.InferenceError | None) -> None:
        if failure is None:
            self.listener.loaded(name)
        # What cannot be tried, or is not there at all, is not to be loaded.
        elif failure.kind not in {border.ErrorKind.INTERNAL, border.ErrorKind.UNAVAILABLE}:
            self.listener.failed(name)

    async def _attempt(
        self, model: _Model, parameters: Mapping[str, border.Parameter | bytes]
    ) -> border.InferenceError | None:
        """Loads the model; what went wrong, if anything did."""
        try:
            prepared = await self._in_pool(lambda: self._prepare(model, parameters))
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

    def _prepare(self, model: _Model, parameters: Mapping[str, border.Parameter | bytes]) -> _Prepared:
        config, files = _parsed(parameters)
        temporary = self._files.write(model.name, files) if files else None
        try:
            directory = temporary or self._repository.find(model.name)
            return _Prepared(self._loader.plan(directory, config, brought=temporary is not None), temporary)
        except BaseException:
            _remove(temporary)
            raise

    async def _replace(self, model: _Model, prepared: _Prepared, serving: loader.Serving | None) -> None:
        plan = prepared.plan
        numbers = [str(version) for version in plan.versions]
        log.info("model.loading", model=model.name, versions=numbers)
        if not model.versions:
            model.mark(numbers, State.LOADING)
        try:
            opened = await self._open(plan, serving)
        except BaseException:
            _remove(prepared.temporary)
            raise
        if self._stopping:
            opened.abandon()
            _remove(prepared.temporary)
            raise scheduler.stopping()
        staying = set(opened.versions.values())
        old = {number: version for number, version in model.versions.items() if version not in staying}
        old_files = model.temporary
        opened.serve()
        model.serve(dict(opened.versions))
        model.mark(numbers, State.READY)
        model.plan, model.temporary = plan, prepared.temporary
        log.info("model.loaded", model=model.name, versions=numbers, fresh=[each.spec.version for each in opened.fresh])
        self._retire(old, old_files)

    async def _open(self, plan: loader.Plan, serving: loader.Serving | None) -> loader.Opened:
        for attempt in range(self._retries):
            try:
                return await self._in_pool(lambda: self._loader.open(plan, serving))
            except (border.InferenceError, port.LoadFailed) as error:
                log.warning("model.load_retried", model=plan.config.name, attempt=attempt + 1, reason=str(error))
        return await self._in_pool(lambda: self._loader.open(plan, serving))

    def _failed(self, model: _Model, kind: border.ErrorKind, reason: str) -> border.InferenceError:
        reason = reason[:_MAX_REASON]
        log.warning("model.load_failed", model=model.name, reason=reason)
        if not model.versions:
            model.mark(list(model.states) or [""], State.UNAVAILABLE, reason)
        return border.InferenceError(kind, f"load failed for model '{model.name}': {reason}")

    async def _unload(self, model: _Model, begun: asyncio.Event) -> None:
        try:
            async with model.lock:
                self.listener.dropped(model.name)
                versions = model.versions
                if not versions:
                    return
                model.mark(list(versions), State.UNLOADING)
                model.serve({})
                begun.set()
                log.info("model.unloading", model=model.name, versions=list(versions))
                files, model.temporary, model.plan = model.temporary, None, None
                await self._end(versions, files)
                model.mark(list(model.states), State.UNAVAILABLE, "unloaded")
                log.info("model.unloaded", model=model.name)
        finally:
            model.calls -= 1
            begun.set()

    def _retire(self, versions: dict[str, loader.Version], files: layout.ModelDirectory | None) -> None:
        if versions:
            self._spawn(self._end(versions, files))

    async def _end(self, versions: dict[str, loader.Version], files: layout.ModelDirectory | None) -> None:
        """Lets versions that serve no more finish what they have accepted, then frees them."""
        self._retiring.update(versions.values())
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

    def _forget(self, model: _Model) -> None:
        model.serve({})
        model.mark(list(model.states), State.UNAVAILABLE, "unloaded")
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


def _parsed(parameters: Mapping[str, border.Parameter | bytes]) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files among the parameters of a load call. Raises InferenceError INVALID_ARGUMENT."""
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        if key == "config" and isinstance(value, str):
            config = value
        elif key.startswith(_FILE) and isinstance(value, bytes):
            files[key.removeprefix(_FILE)] = value
        elif key == "config" or key.startswith(_FILE):
            raise _invalid(f"load parameter '{key}' must be {'a string' if key == 'config' else 'bytes'}")
        else:
            raise _invalid(f"unexpected load parameter '{key}': known are 'config' and 'file:<path>'")
    if files and config is None:
        raise _invalid("load parameter 'config' must be given when files are overridden")
    return config, files


def _enter(model: _Model) -> None:
    """Counts a call in; raises InferenceError UNAVAILABLE where very many wait for their turn already."""
    if model.calls >= _MOST_CALLS:
        raise border.InferenceError(
            border.ErrorKind.UNAVAILABLE,
            f"related model '{model.name}' to a load/unload request is currently loading or unloading: try again later",
        )
    model.calls += 1


def _joined(running: Sequence[scheduler.Scheduler], until_s: float) -> bool:
    """Blocks until all have ended, at most until that monotonic time; true if they have."""
    return all(each.join(until_s) for each in running)


def _remove(directory: layout.ModelDirectory | None) -> None:
    if directory is not None:
        override.remove(directory.path)


def _unknown(name: str, version: str) -> border.InferenceError:
    which = f" version {version}" if version else ""
    return border.InferenceError(border.ErrorKind.NOT_FOUND, f"Request for unknown model: '{name}'{which} is not found")


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)

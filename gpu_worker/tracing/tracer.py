"""Which requests are traced: one in so many, for all models or for one.

Every scope, the global one and that of each model with settings of its own, counts for itself.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import threading
from typing import Any

from gpu_worker.engine import border, spec, trace, tracing, work
from gpu_worker.tracing import settings as trace_settings
from gpu_worker.tracing import spans, writer


@dataclasses.dataclass(slots=True, eq=False)
class _Scope:
    """Settings in force, `count` being what is left; the batch that its traces go to, and how many are still to come."""

    settings: trace_settings.Settings
    batch: writer.Batch | None
    asked: int = 0
    running: int = 0

    def sample(self) -> bool:
        """Whether this request is to be traced."""
        settings = self.settings
        if not settings.on:
            return False
        self.asked += 1
        if self.asked % settings.rate:
            return False
        if settings.count > 0:
            self.settings = dataclasses.replace(settings, count=settings.count - 1)
        return True


class Tracer:
    """Belongs to one engine. Settings change on the event loop, requests begin there; traces end in any thread."""

    def __init__(self, start: trace_settings.Settings) -> None:
        self._start = start
        self._given: dict[str, dict[str, Any]] = {"": {}}
        self._spans = start.mode == trace_settings.OPENTELEMETRY
        self._writer = spans.Spans(start.url, start.resource) if self._spans else writer.Writer()
        self._all = writer.Batch(pathlib.Path(start.destination), 0, indexed=False) if start.destination else None
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._scopes = {"": self._scope(start)}
        self.on = start.on

    def begin(self, model: spec.ModelSpec, each: work.Work) -> None:
        with self._lock:
            scope = self._scopes.get(model.name) or self._scopes[""]
            if not scope.sample() or scope.batch is None:
                return
            levels = scope.settings.levels
            found = self._trace(scope, model, each)
            found.timestamps = trace_settings.TIMESTAMPS in levels
            found.tensors = trace_settings.TENSORS in levels
        tracing.follow(found, each)

    def child(self, parent: trace.Trace, model: spec.ModelSpec, each: work.Work) -> None:
        """A step is traced as its parent is, and counts for no rate."""
        scope = parent.owner
        if not isinstance(scope, _Scope):
            return
        with self._lock:
            found = self._trace(scope, model, each)
            found.parent_id, found.timestamps, found.tensors = parent.id, parent.timestamps, parent.tensors
        tracing.follow(found, each)

    def _trace(self, scope: _Scope, model: spec.ModelSpec, each: work.Work) -> trace.Trace:
        scope.running += 1
        return trace.Trace(
            id=next(self._ids),
            model=model.name,
            version=model.version,
            request_id=each.request.id,
            timestamps=False,
            tensors=False,
            done=functools.partial(self._done, scope),
            owner=scope,
        )

    def settings(self, model: str) -> trace_settings.Settings:
        """Those in force for a model, or the global ones where `model` is empty."""
        with self._lock:
            return (self._scopes.get(model) or self._scopes[""]).settings

    def update(self, model: str, changes: trace_settings.Changes) -> None:
        """Raises InferenceError, and changes nothing, where one of the changes is not to be had."""
        if self._spans:
            raise border.InferenceError(
                border.ErrorKind.UNSUPPORTED,
                "trace settings can not be updated through network protocol in mode opentelemetry",
            )
        given = trace_settings.changed(self._given.get(model, {}), changes)
        if given.get("levels") and not self._start.file:
            raise trace_settings.refused(
                "Attempting to set invalid trace setting: trace file name is not given; the server needs --trace-config "
                "triton,file=FILE"
            )
        with self._lock:
            if model and not given:
                self._given.pop(model, None)
                self._retire(self._scopes.pop(model, None))
            else:
                self._given[model] = given
            for name in [model] if model else list(self._given):
                own = name == model or "count" not in self._given[name]
                self._rebuild(name, keep_count=not (own and "trace_count" in changes))
            self.on = any(scope.settings.on for scope in self._scopes.values())

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()

    def _rebuild(self, name: str, *, keep_count: bool) -> None:
        """Puts the settings of a scope together anew; with `keep_count` what is left of its count stays so."""
        if name not in self._given:
            return
        settings = dataclasses.replace(self._start, **{**self._given[""], **self._given[name]})
        old = self._scopes.get(name)
        if old is not None and keep_count:
            settings = dataclasses.replace(settings, count=old.settings.count)
        self._retire(old)
        self._scopes[name] = self._scope(settings)

    def _scope(self, settings: trace_settings.Settings) -> _Scope:
        if (settings.log_frequency or settings.count >= 0) and not self._spans:
            most = settings.log_frequency or settings.count
            path = pathlib.Path(settings.file)
            return _Scope(settings, writer.Batch(path, most, indexed=True) if settings.file else None)
        return _Scope(settings, self._all)

    def _done(self, scope: _Scope, each: trace.Trace) -> None:
        assert scope.batch is not None
        self._writer.write(scope.batch, each)
        with self._lock:
            scope.running -= 1
            over = not scope.running and (scope.settings.count == 0 or scope not in self._scopes.values())
        if over:
            self._finish(scope)

    def _retire(self, scope: _Scope | None) -> None:
        """The scope's file is whole once its last trace has ended."""
        if scope is not None and not scope.running:
            self._finish(scope)

    def _finish(self, scope: _Scope) -> None:
        if scope.batch is not None and scope.batch is not self._all:
            self._writer.finish(scope.batch)

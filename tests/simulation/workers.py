"""Simulated workers with their sidecars: they do what they are told, one step at a time, and count requests."""

from __future__ import annotations

import dataclasses
import datetime as dt

from tests.unit.core import builders as b
from tms_server.fleet import desired
from tms_server.model import bundle, group, ids, resources

_NEXT = {
    group.ModelState.FETCHING: group.ModelState.LOADING,
    group.ModelState.LOADING: group.ModelState.READY,
    group.ModelState.DRAINING: None,
}


@dataclasses.dataclass
class Loaded:
    """One model in a worker."""

    state: group.ModelState
    count: int = 0
    last: dt.datetime | None = None
    in_flight: int = 0
    reason: str = ""


class Worker:
    """One worker. A killed one comes back empty, under another incarnation."""

    def __init__(self, group_id: ids.GroupId) -> None:
        self.group_id = group_id
        self.incarnation = 1
        self.generation = 0
        self.models: dict[bundle.ModelKey, Loaded] = {}
        self.endpoints: tuple[resources.Endpoint, ...] = ()
        self.broken: dict[str, str] = {}

    def step(self, wanted: desired.Wanted) -> None:
        """Takes note of the wish and brings every model one state further."""
        self.generation = wanted.generation
        for key in [key for key in self.models if self.models[key].state in _NEXT]:
            self._forward(key)
        keys = [model.key for model in wanted.models]
        for key in keys:
            self.models.setdefault(key, Loaded(group.ModelState.FETCHING))
        for key, model in self.models.items():
            if key not in keys and not model.in_flight:
                model.state = group.ModelState.DRAINING
        ready = {key.name for key in keys if self.models[key].state is group.ModelState.READY}
        self.endpoints = tuple(each.endpoint for each in wanted.endpoints if ready.issuperset(each.models))

    def kill(self) -> None:
        self.incarnation += 1
        self.generation = 0
        self.models = {}
        self.endpoints = ()

    def use(self, key: bundle.ModelKey, now: dt.datetime) -> bool:
        """A request; False where the model does not serve."""
        model = self.models.get(key)
        if model is None or model.state is not group.ModelState.READY:
            return False
        model.count += 1
        model.last = now
        return True

    def report(self) -> group.GroupReport:
        """The state as it is now; the time of arrival is filled in when it arrives."""
        models = tuple(
            group.ModelReport(
                name=key.name,
                source_digest=key.source_digest,
                config_digest=key.config_digest,
                state=model.state,
                reason=model.reason,
                message=model.reason,
                inference_count=model.count,
                last_inference=model.last,
                in_flight=model.in_flight,
            )
            for key, model in self.models.items()
        )
        return b.a_report(
            self.group_id,
            *models,
            incarnation=f"i{self.incarnation}",
            generation=self.generation,
            endpoints=self.endpoints,
            server_restarts=self.incarnation - 1,
        )

    def _forward(self, key: bundle.ModelKey) -> None:
        after = _NEXT[self.models[key].state]
        if after is None:
            del self.models[key]
        elif after is group.ModelState.READY and key.name in self.broken:
            self.models[key] = Loaded(group.ModelState.FAILED, reason=self.broken[key.name])
        else:
            self.models[key] = Loaded(after)

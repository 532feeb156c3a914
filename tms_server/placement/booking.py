"""How many bytes models take, and what is booked on each worker.

A model books the greater of what was declared and what was measured; where neither is known, an estimate from its files.
Models that several leases of a worker share count once. Draining assignments count until they are gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from tms_server.model import bundle, group, ids, lease, resources, sizes

ESTIMATE_FACTOR = 2
"""Bytes of a model that nobody has declared or measured, as a multiple of its files."""

Measured = Mapping[tuple[ids.Digest, str, str], int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A lease with all that placement asks of it, worked out once. `needed` is by served name."""

    lease: lease.Lease
    names: frozenset[str]
    keys: Mapping[str, bundle.ModelKey]
    needed: Mapping[str, int]
    needed_bytes: int
    classes: tuple[str, ...]
    basis: Mapping[str, str]
    """Where each model's bytes come from: declared, measured or estimated."""

    def details(self) -> str:
        """The bytes of each model and where they come from."""
        return ", ".join(f"{name} {sizes.text(size)} {self.basis[name]}" for name, size in self.needed.items())


@dataclasses.dataclass(frozen=True, slots=True)
class Booked:
    """One model loaded, or about to be, on a worker."""

    key: bundle.ModelKey
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """One worker group with what is booked on it. `staying` are the leases not draining."""

    group: group.WorkerGroup
    held: tuple[lease.Lease, ...] = ()
    staying: frozenset[ids.LeaseId] = frozenset()
    models: Mapping[str, Booked] = dataclasses.field(default_factory=dict)
    booked_bytes: int = 0

    @property
    def free_bytes(self) -> int:
        """Negative where measurements turned out greater than what was booked."""
        return self.group.capacity_bytes - self.booked_bytes

    @property
    def empty(self) -> bool:
        return not self.held and not self.booked_bytes

    def added_bytes(self, candidate: Candidate) -> int:
        """Bytes that the candidate would add, models that are there already counted by their difference only."""
        added = 0
        for name, size in candidate.needed.items():
            there = self.models.get(name)
            added += size if there is None else max(0, size - there.bytes)
        return added

    def shared_bytes(self, candidate: Candidate) -> int:
        """Bytes of the candidate's models that are there already."""
        return sum(self.models[name].bytes for name in candidate.names & self.models.keys())

    def room_for(self, candidate: Candidate) -> bool:
        """A quick no: False only where the bytes cannot suffice whatever the other rules say."""
        return self.free_bytes >= candidate.needed_bytes or not candidate.names.isdisjoint(self.models)

    def letting_go(self, leaving: ids.LeaseId) -> Book:
        """The book once a lease is no longer wanted here; its bytes are there until the worker has confirmed."""
        return dataclasses.replace(self, staying=self.staying - {leaving})

    def freed_bytes(self, leaving: lease.Lease) -> int:
        """Bytes that the end of one of the held leases would free: those of models that no other holds."""
        kept = {model.key for other in self.held if other.id != leaving.id for model in bundle.models(other)}
        going = {model.key for model in bundle.models(leaving)} - kept
        return sum(booked.bytes for booked in self.models.values() if booked.key in going)

    def adding(self, candidate: Candidate, *, draining: bool = False) -> Book:
        """The book with the candidate on it, unchecked: the rules are asked before."""
        models = dict(self.models)
        for name, size in candidate.needed.items():
            there = models.get(name)
            models[name] = Booked(candidate.keys[name], max(size, there.bytes if there is not None else 0))
        return dataclasses.replace(
            self,
            held=(*self.held, candidate.lease),
            staying=self.staying if draining else self.staying | {candidate.lease.id},
            models=models,
            booked_bytes=self.booked_bytes + self.added_bytes(candidate),
        )


def measured(measurements: Iterable[group.Measurement]) -> Measured:
    """Greatest measured bytes by (source digest, config digest, worker kind)."""
    found: dict[tuple[ids.Digest, str, str], int] = {}
    for each in measurements:
        key = (each.source_digest, each.config_digest, each.worker)
        found[key] = max(each.bytes, found.get(key, 0))
    return found


def worker_kind(spec: resources.WorkerSpec) -> str:
    """What a measurement depends on besides the model: command or image, and the kind of device."""
    return f"{spec.image or spec.command}/{'gpu' if spec.resources.gpus else 'cpu'}"


def candidate(asked: lease.Lease, worker: resources.WorkerSpec, known: Measured) -> Candidate:
    """Works out what a resolved lease needs on such a worker."""
    models = bundle.models(asked)
    kind = worker_kind(worker)
    found = {model.key.name: model_bytes(model, kind, known) for model in models}
    return Candidate(
        lease=asked,
        names=frozenset(found),
        keys={model.key.name: model.key for model in models},
        needed={name: size for name, (size, _) in found.items()},
        needed_bytes=sum(size for size, _ in found.values()),
        classes=tuple(sorted({model.framework_class for model in models})),
        basis={name: basis for name, (_, basis) in found.items()},
    )


def model_bytes(model: bundle.Model, kind: str, known: Measured) -> tuple[int, str]:
    """Bytes that a model books on a worker of that kind, and whether they are declared, measured or estimated."""
    found = known.get((model.key.source_digest, model.key.config_digest, kind), 0)
    declared = model.reference.declared_bytes
    if max(found, declared) == 0:
        return ESTIMATE_FACTOR * model.source.size_bytes, "estimated"
    return (found, "measured") if found > declared else (declared, "declared")

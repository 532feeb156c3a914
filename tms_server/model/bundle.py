"""Identity of the models of a lease: which of them are the same bytes under the same name, and what may run beside what."""

from __future__ import annotations

import dataclasses
import hashlib

from tms_server.model import group, ids, lease, source

SHARED_CLASS = "shared"
CLASSES = {
    source.Framework.ONNXRUNTIME: SHARED_CLASS,
    source.Framework.TENSORRT: SHARED_CLASS,
    source.Framework.PYTHON: SHARED_CLASS,
    source.Framework.ENSEMBLE: SHARED_CLASS,
    source.Framework.PYTORCH: "pytorch",
    source.Framework.TENSORFLOW: "tensorflow",
}
"""Frameworks that keep memory after an unload share a worker only with their own kind."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """Two models of one worker with the same key are one model, loaded once."""

    name: str
    source_digest: ids.Digest
    config_digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One resolved model of a lease."""

    key: ModelKey
    reference: lease.ModelReference
    source: source.ModelSource

    @property
    def framework_class(self) -> str:
        return CLASSES[self.source.framework]


def models(owner: lease.Lease) -> tuple[Model, ...]:
    """The lease's models in the order they are loaded; empty until all are resolved."""
    if len(owner.sources) != len(owner.spec.models):
        return ()
    pairs = zip(owner.spec.models, owner.sources, strict=True)
    return tuple(Model(key=key(reference, found), reference=reference, source=found) for reference, found in pairs)


def key(reference: lease.ModelReference, found: source.ModelSource) -> ModelKey:
    """What a sidecar's report calls the model."""
    return ModelKey(reference.name, found.digest, config_digest(reference.config_override))


def reported_key(model: group.ModelReport) -> ModelKey:
    """The key of a model in a sidecar's report."""
    return ModelKey(model.name, model.source_digest, model.config_digest)


def config_digest(override: str) -> str:
    """sha256 of a configuration override, empty without one."""
    return hashlib.sha256(override.encode()).hexdigest() if override else ""


def framework_classes(owner: lease.Lease) -> tuple[str, ...]:
    """Classes that the lease's models need, sorted; more than one never fits a shared worker."""
    return tuple(sorted({model.framework_class for model in models(owner)}))

"""Whether clients may be sent to this worker: pure, from what is held, what was said and what happened.

Decides by a latch: ready once all that was wanted at one moment is loaded, or has failed for good, in this life of the
worker, and once the control plane has said in this life of the pod that clients are led here. What is wanted later never
takes it back, since that would take the pod from the clients of what is loaded already; a restart of the worker does.
Must never read a clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from sidecar import desired as desired_state
from sidecar import values

_OVER = {desired_state.Phase.READY, desired_state.Phase.FAILED}


@dataclasses.dataclass(frozen=True, slots=True)
class Latch:
    """`settled` belongs to this life of the worker, `routed` to this life of the pod."""

    settled: bool = False
    routed: bool = False

    @property
    def set(self) -> bool:
        return self.settled and self.routed


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a readiness probe: a stable word and a sentence; both empty when ready."""

    reason: str = ""
    message: str = ""

    @property
    def ready(self) -> bool:
        return not self.reason


def advance(latch: Latch, desired: values.Desired, held: Mapping[str, desired_state.Held]) -> Latch:
    """The latch once this is desired, by a control plane that was heard at some time, and held."""
    settled = latch.settled or not unsettled(desired, held)
    return Latch(settled, latch.routed or desired.routed)


def restarted(latch: Latch) -> Latch:
    """The worker began anew, and holds nothing."""
    return dataclasses.replace(latch, settled=False)


def unsettled(desired: values.Desired, held: Mapping[str, desired_state.Held]) -> tuple[str, ...]:
    """Wanted names that are neither loaded with the wanted bytes nor failed for good."""
    return tuple(
        model.name
        for model in desired.models
        if (found := held.get(model.name)) is None or found.key != model.key or found.phase not in _OVER
    )


def verdict(
    latch: Latch, desired: values.Desired, held: Mapping[str, desired_state.Held], lost: Collection[str]
) -> Verdict:
    """Whether to send clients; `lost` is what should serve and, as the worker said a moment ago, does not."""
    if not latch.settled:
        waiting = ", ".join(unsettled(desired, held))
        return Verdict("ModelsNotLoaded", f"not loaded yet: {waiting or 'the control plane was not heard yet'}")
    if not latch.routed:
        return Verdict("NotRouted", "the control plane has not led clients here yet")
    if lost:
        return Verdict("ModelsLost", f"the worker does not serve any more: {', '.join(sorted(lost))}")
    return Verdict()

"""What the clients of one front may do beside inference: one value, so that a front is made from few."""

from __future__ import annotations

import dataclasses

from gpu_worker.wire import control as wire_control
from gpu_worker.wire import sharing as wire_sharing


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """`control` guards the model repository calls, `sharing` the use of shared memory."""

    control: wire_control.Control = wire_control.OPEN
    sharing: wire_sharing.Sharing = dataclasses.field(default_factory=wire_sharing.Sharing)


OPEN = Rules()

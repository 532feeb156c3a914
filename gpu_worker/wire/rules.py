"""What the clients of one front may do beside inference: one value, so that a front is made from few."""

from __future__ import annotations

import dataclasses

from gpu_worker.wire import control as wire_control
from gpu_worker.wire import forwarding as wire_forwarding
from gpu_worker.wire import restriction as wire_restriction
from gpu_worker.wire import sharing as wire_sharing

_UNRESTRICTED = wire_restriction.Restriction("API", {})


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """`control` guards calls that change the server, `sharing` shared memory, `restriction` groups of calls.

    `forwarding` picks headers that become parameters. With `trace_context` requests are told which span they are part of.
    """

    control: wire_control.Control = wire_control.OPEN
    sharing: wire_sharing.Sharing = dataclasses.field(default_factory=wire_sharing.Sharing)
    restriction: wire_restriction.Restriction = _UNRESTRICTED
    forwarding: wire_forwarding.Forwarding = dataclasses.field(default_factory=wire_forwarding.Forwarding)
    trace_context: bool = False


OPEN = Rules()

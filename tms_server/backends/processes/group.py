"""One worker with its sidecar: each is restarted by itself, because a sidecar reloads what a restarted worker lost."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from tms_server import clock as clock_module
from tms_server.backends.processes import commands, layout, member
from tms_server.backends.processes import options as options_module
from tms_server.model import ids
from tms_server.ports import backend

ROLES = ("worker", "sidecar")


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What all groups of a backend share. `changed` is called whenever `observed` may answer something new."""

    options: options_module.Options
    clock: clock_module.Clock
    changed: Callable[[], None]


class Group:
    """A launched group. `stopping` once it is on its way out."""

    def __init__(self, stored: layout.Stored, directory: pathlib.Path, around: Surroundings) -> None:
        self.stored = stored
        self.directory = directory
        self.stopping = False
        self._around = around
        self._worker = self._member(
            member.Program(
                role="worker",
                directory=directory,
                argv=lambda: commands.worker_argv(around.options, stored.spec, directory),
                environment=commands.worker_environment(around.options, stored.devices),
            )
        )
        self._sidecar = self._member(
            member.Program(
                role="sidecar",
                directory=directory,
                argv=lambda: commands.sidecar_argv(around.options, stored.spec, directory),
                environment=commands.sidecar_environment(around.options),
            )
        )

    async def adopt(self) -> None:
        """Takes over the processes of an earlier server.

        A worker is kept whatever its command line was, as it holds models; a sidecar must know today's server.
        """
        await self._worker.adopt(same_argv=False)
        await self._sidecar.adopt(same_argv=True)

    def start(self) -> None:
        """Begins to keep both running."""
        self._worker.start()
        self._sidecar.start()

    async def stop(self) -> None:
        """Ends both, the sidecar first so that it does not report a lost worker; Unavailable if one cannot be killed."""
        self.stopping = True
        grace = self._around.options.stop_grace
        await self._sidecar.stop(grace)
        await self._worker.stop(grace)

    async def detach(self) -> None:
        """Lets go of both and leaves them running."""
        await self._sidecar.detach()
        await self._worker.detach()

    def observed(self) -> backend.Observed:
        """The pair as one: as bad as the worse of both. Restarts are the worker's, which lose its models."""
        phases = {self._worker.phase, self._sidecar.phase}
        order = (backend.Phase.BACKING_OFF, backend.Phase.STARTING, backend.Phase.RUNNING)
        messages = (self._worker.message, self._sidecar.message)
        return backend.Observed(
            group_id=self.stored.spec.group_id,
            phase=next(phase for phase in order if phase in phases),
            restarts=self._worker.restarts,
            message="stopping" if self.stopping else "; ".join(filter(None, messages)),
            replicas=(backend.Replica(id=ids.ONLY_REPLICA, phase=backend.Phase.RUNNING, halted=self._halted()),),
        )

    def _halted(self) -> bool:
        return self._worker.phase is backend.Phase.BACKING_OFF

    def _member(self, program: member.Program) -> member.Member:
        return member.Member(program, self._around.options.backoff, self._around.clock, self._around.changed)

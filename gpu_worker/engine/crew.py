"""The threads that serve a model version, one for each instance.

Decides which instances stay when programs come and go. Knows nothing of requests; who uses it locks.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from gpu_worker.runtime import port

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True, eq=False)
class Instance:
    """One thread's share: the program that it runs until it is to leave."""

    program: port.Program
    leaving: bool = False


class Crew:
    """The instances that serve, and the threads of all that have not ended yet.

    `name` begins the threads' names; `serve` is what each thread runs. All but `join` is called under the user's lock.
    """

    def __init__(self, name: str, serve: Callable[[Instance], None]) -> None:
        self._name = name
        self._serve = serve
        self._made = 0
        self._threads: list[threading.Thread] = []
        self.instances: list[Instance] = []

    def resize(self, programs: Sequence[port.Program], *, begin: bool) -> Sequence[Instance]:
        """Serves through these, one instance for each entry; `begin` False starts none. Those that are to leave now."""
        wanted = list(programs)
        leaving: list[Instance] = []
        for instance in self.instances:
            index = next((at for at, program in enumerate(wanted) if program is instance.program), None)
            if index is None:
                leaving.append(instance)
            else:
                del wanted[index]
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if begin:
            self._begin(Instance(program) for program in wanted)
        if len(leaving) == len(self.instances):
            # Nothing would be left that serves.
            return ()
        for instance in leaving:
            instance.leaving = True
        self.instances = [instance for instance in self.instances if not instance.leaving]
        return leaving

    def forget(self, instance: Instance) -> None:
        """Lets go of the program: its memory is to be free once its last thread has ended."""
        self.instances = [each for each in self.instances if each is not instance]

    def join(self, until_s: float) -> bool:
        """Blocks until all threads have ended, at most until that monotonic time; true if they have."""
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _begin(self, fresh: Iterable[Instance]) -> None:
        """Starts their threads; as long as one serves, those that the system refuses are done without."""
        for instance in fresh:
            self._made += 1
            name = f"{self._name}_{self._made - 1}"
            thread = threading.Thread(target=self._serve, args=(instance,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self.instances:
                    raise
                log.error("instance.not_started", instance=name, reason=str(error))  # noqa: TRY400 - the reason says all
                return
            self.instances.append(instance)
            self._threads.append(thread)

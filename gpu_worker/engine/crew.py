"""The threads that serve a model version, one for each instance.

Decides which instances stay when programs come and go: all that is wanted comes, or nothing changes. Knows nothing of
requests; who uses it locks.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

from gpu_worker.runtime import port

_REMEDY = "lower instance_group.count, or let the worker have more threads (ulimit -u, pids of its container)"


@dataclasses.dataclass(slots=True, eq=False)
class Instance:
    """One thread's share: the program that it runs, once it is let, until it is to leave.

    It has `asked` for its turn where a rate limiter says whose it is.
    """

    program: port.Program
    leaving: bool = False
    asked: bool = False
    let: threading.Event = dataclasses.field(default_factory=threading.Event)
    performer: port.Performer | None = None

    @property
    def able(self) -> bool:
        """Whether it can run a batch now."""
        return self.performer is None or self.performer.ready


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Instances that are to come, with threads that wait to be let, and those that are to leave for them."""

    coming: Sequence[tuple[Instance, threading.Thread]]
    leaving: Sequence[Instance]


class Crew:
    """The instances that serve, and the threads of all that have not ended yet.

    `name` begins the threads' names; `serve` is what each thread runs. All but `join` is called under the user's lock.
    Programs are `port.Performer`s where `changed` is given, which is called when one can run again, or no more.
    """

    def __init__(self, name: str, serve: Callable[[Instance], None], changed: Callable[[], None] | None = None) -> None:
        self._name = name
        self._serve = serve
        self._changed = changed
        self._made = 0
        self._threads: list[threading.Thread] = []
        self.instances: list[Instance] = []

    def prepare(self, programs: Sequence[port.Program], *, begin: bool) -> Change:
        """What it takes to serve through these, one instance for each entry; nobody serves otherwise yet.

        `begin` False starts none. Raises LoadFailed where the system refuses a thread, with nothing left behind.
        """
        wanted = list(programs)
        leaving: list[Instance] = []
        for instance in self.instances:
            index = next((at for at, program in enumerate(wanted) if program is instance.program), None)
            if index is None:
                leaving.append(instance)
            else:
                del wanted[index]
        return Change(self._begun(wanted) if begin else (), leaving)

    def settle(self, change: Change) -> Sequence[Instance]:
        """Serves so from now on; those that leave now."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads += [thread for _, thread in change.coming]
        self.instances += [instance for instance, _ in change.coming]
        for instance, _ in change.coming:
            if instance.performer is not None and self._changed is not None:
                instance.performer.watch(self._changed)
            instance.let.set()
        staying = [instance for instance in self.instances if instance not in change.leaving]
        if not staying:
            # Nothing would be left that serves.
            return ()
        for instance in change.leaving:
            instance.leaving = True
        self.instances = staying
        return change.leaving

    def drop(self, change: Change) -> None:
        """Forgets what was prepared; returns once its threads, which have never served, have ended."""
        for instance, _ in change.coming:
            instance.leaving = True
            instance.let.set()
        for _, thread in change.coming:
            thread.join()

    def forget(self, instance: Instance) -> None:
        """Lets go of the program: its memory is to be free once its last thread has ended."""
        self.instances = [each for each in self.instances if each is not instance]

    def join(self, until_s: float) -> bool:
        """Blocks until all threads have ended, at most until that monotonic time; true if they have."""
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def able(self) -> bool:
        """Whether any of the instances can run a batch now."""
        return any(instance.able for instance in self.instances)

    def _begun(self, programs: Sequence[port.Program]) -> Sequence[tuple[Instance, threading.Thread]]:
        coming: list[tuple[Instance, threading.Thread]] = []
        for program in programs:
            instance = self._instance(program)
            self._made += 1
            name = f"{self._name}_{self._made - 1}"
            thread = threading.Thread(target=self._run, args=(instance,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self.drop(Change(coming, ()))
                refused = f"instance {len(coming) + 1} of the {len(programs)} to be started: {error}"
                raise port.LoadFailed(f"the system refused a thread for {refused}; {_REMEDY}") from None
            coming.append((instance, thread))
        return coming

    def _instance(self, program: port.Program) -> Instance:
        performs = self._changed is not None
        return Instance(program, performer=cast("port.Performer", program) if performs else None)

    def _run(self, instance: Instance) -> None:
        instance.let.wait()
        if not instance.leaving:
            self._serve(instance)
            if instance.performer is not None:
                instance.performer.close()

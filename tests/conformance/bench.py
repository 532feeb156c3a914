"""The servers of one run and the answers that cases got from them. Starts each setup when a case first asks for it."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import types
from collections.abc import Mapping
from typing import Self

from tests.conformance import asking, case, comparing, expected, models, servers, setups

FRONTENDS: Mapping[str, tuple[str, ...]] = {
    "grpcio": ("--grpc-frontend=grpcio",),
    "native": ("--grpc-frontend=native",),
    "processes": ("--frontends=2",),
}
"""The ways in which our worker serves, each with the flags that choose it; all must answer alike."""

_GRPC_ONLY = {"native"}
_TRITON = "triton"


def ways(of: case.Case) -> tuple[str, ...]:
    """The front ends that a case can tell apart."""
    return tuple(name for name in FRONTENDS if of.transport is case.Transport.GRPC or name not in _GRPC_ONLY)


@dataclasses.dataclass(frozen=True)
class Compared:
    """One case on one of our front ends, beside Triton."""

    answers: expected.Expected
    aspects: Mapping[comparing.Aspect, str]


class Bench:
    """A context; leaving it ends all servers."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._repositories: dict[str, models.Repositories] = {}
        self._stack = contextlib.ExitStack()
        self._askers: dict[tuple[str, str], asking.Asker | servers.StartFault] = {}
        self._answers: dict[tuple[str, str], asking.Answers] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def compare(self, of: case.Case, frontend: str) -> Compared:
        """The case's answers side by side. Raises servers.StartFault when Triton does not start."""
        triton = self._ask(of, _TRITON)
        shown = _shown(of, triton)
        try:
            ours = self._ask(of, frontend)
        except servers.StartFault as fault:
            refusal = expected.Answer("does not start", fault.reason)
            return Compared(expected.Expected(shown, refusal), {comparing.Aspect.START: fault.reason})
        return Compared(expected.Expected(shown, _shown(of, ours)), comparing.aspects(of, ours, triton))

    def _ask(self, of: case.Case, server: str) -> asking.Answers:
        if (server, of.id) not in self._answers:
            asker = self._asker(of.setup, server)
            self._answers[server, of.id] = asker.ask(of)
            if asker.broke(self._answers[server, of.id]):
                del self._askers[of.setup, server]  # the next case gets a new one
        return self._answers[server, of.id]

    def _asker(self, setup: str, server: str) -> asking.Asker:
        if (setup, server) not in self._askers:
            try:
                self._askers[setup, server] = self._start(setup, server)
            except servers.StartFault as fault:
                self._askers[setup, server] = fault
        found = self._askers[setup, server]
        if isinstance(found, servers.StartFault):
            raise found
        return found

    def _start(self, setup: str, server: str) -> asking.Asker:
        flags = setups.SETUPS[setup].filled(self._folder / setup / server)
        repositories = self._repository(setup)
        if server == _TRITON:
            started = servers.triton(repositories.triton, flags)
        else:
            started = servers.worker(repositories.ours, [*flags, *FRONTENDS[server]])
        asker = asking.Asker(self._stack.enter_context(started), ours=server != _TRITON)
        self._stack.callback(asker.close)
        return asker

    def _repository(self, setup: str) -> models.Repositories:
        if setup not in self._repositories:
            self._repositories[setup] = models.Repositories.make(self._folder / setup, setups.SETUPS[setup].models)
        return self._repositories[setup]


def _shown(of: case.Case, answers: asking.Answers) -> expected.Answer:
    return expected.answer(of, comparing.known(of, of.call, answers.calls[len(of.before)]))

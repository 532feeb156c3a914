"""One request's way through an ensemble: which steps can start, given which tensors are there.

Pure. A step starts once, as soon as all that it takes is there. A tensor is let go when its last taker has it. Steps
that fail are not known here: whoever runs them ends the flow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from gpu_worker.engine import graph

_T = TypeVar("_T")


class Flow(Generic[_T]):
    """Tensors are whatever the shell has for them; None stands for an optional one that is not given."""

    def __init__(self, plan: graph.Plan) -> None:
        self._plan = plan
        self._lacking = {step: len(tensors) for step, tensors in plan.takes.items()}
        self._uses = dict(plan.uses)
        self._there: dict[str, _T | None] = {}
        self._unanswered = len(plan.outputs)

    def put(self, made: Iterable[tuple[str, _T | None]]) -> list[int]:
        """Takes tensors in, each of them once, and gives the steps that can start now; what nobody needs is not kept."""
        ready: list[int] = []
        for name, tensor in made:
            if name not in self._uses or name in self._there:
                continue
            self._there[name] = tensor
            takers = self._plan.takers.get(name, ())
            for step in takers:
                self._lacking[step] -= 1
                if not self._lacking[step]:
                    ready.append(step)
            self._unanswered -= self._plan.uses[name] > len(takers)
        return ready

    def take(self, step: int) -> dict[str, _T | None]:
        """The tensors of a step that can start; to be called once for each."""
        if self._lacking.pop(step, None) != 0:
            raise ValueError(f"step {step} cannot start: it has started, or lacks a tensor")
        return {name: self._used(name) for name in self._plan.takes[step]}

    @property
    def complete(self) -> bool:
        """Whether every output that was asked for is there."""
        return not self._unanswered

    @property
    def kept(self) -> frozenset[str]:
        """The tensors that are held for somebody."""
        return frozenset(self._there)

    def answer(self) -> dict[str, _T | None]:
        """The outputs of a complete flow; to be called once."""
        return {name: self._used(name) for name in self._plan.outputs}

    def _used(self, name: str) -> _T | None:
        self._uses[name] -= 1
        if self._uses[name]:
            return self._there[name]
        del self._uses[name]
        return self._there.pop(name)

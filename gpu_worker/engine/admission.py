"""Admission of one model's requests, quick where a request has a form that passed before.

Decides nothing that `validation` does not: names, datatypes, shapes and sizes are all that its checks depend on, and
those are the form. What was refused, and what is in shared memory, is looked at anew each time.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Hashable

from gpu_worker.engine import border, regions, spec, validation, work

_MOST_FORMS = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class _Passed:
    """What was found about a form.

    `order` has, for each input of the model, its place in the request, or -1; None where both have the same order.
    """

    order: tuple[int, ...] | None
    outputs: tuple[border.RequestedOutput, ...] | None
    size: int
    key: Hashable


class Admission:
    """Belongs to one event loop."""

    def __init__(self, model: spec.ModelSpec) -> None:
        self._model = model
        self._passed: dict[Hashable, _Passed] = {}

    def admit(
        self, request: border.InferRequest, loop: asyncio.AbstractEventLoop, arrival_ns: int, shared: regions.Regions
    ) -> work.Work:
        """As `validation.admit`."""
        form = request.form or _form(request)
        try:
            passed = self._passed.get(form) if form else None
        except TypeError:  # a shape that is no tuple
            form = passed = None
        if passed is None:
            admitted = validation.admit(self._model, request, loop, arrival_ns, shared)
            if form:
                self._remember(form, request, admitted)
            return admitted
        given = request.inputs
        order = passed.order
        inputs = tuple(given) if order is None else tuple([None if place < 0 else given[place] for place in order])
        admitted = work.Work(
            request,
            loop,
            arrival_ns,
            inputs,
            passed.outputs,
            passed.size,
            passed.key,
            None,
            work.NOTHING,
            work.NOTHING,
        )
        if self._model.patient and request.deadline_s is None:
            return admitted
        return validation.scheduled(self._model, admitted)

    def _remember(self, form: Hashable, request: border.InferRequest, admitted: work.Work) -> None:
        if len(self._passed) >= _MOST_FORMS:
            self._passed.clear()
        order = tuple(
            next((place for place, given in enumerate(request.inputs) if given is each), -1) for each in admitted.inputs
        )
        straight = order == tuple(range(len(request.inputs)))
        self._passed[form] = _Passed(None if straight else order, admitted.outputs, admitted.size, admitted.key)


def _form(request: border.InferRequest) -> tuple[Hashable, ...] | None:
    """All that the checks look at; None for what is in shared memory."""
    form: list[Hashable] = []
    for tensor in request.inputs:
        if tensor.region is not None:
            return None
        data = tensor.data
        form += (tensor.name, tensor.datatype, tensor.shape, data.nbytes if type(data) is memoryview else len(data))
    for output in request.outputs:
        if output.region is not None:
            return None
        form += (output.name, output.classification)
    form.append(len(request.inputs))
    return tuple(form)

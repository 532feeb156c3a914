"""What an ensemble is made of: which step makes which tensor from which, and whether that can work.

Pure. Everything that can be known when an ensemble is loaded is refused here, in the words that Triton has for it; what
only shapes of a request can tell is left to the steps. `flow` decides what runs when.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from gpu_worker.engine import border, spec

_VARIABLE = -1


@dataclasses.dataclass(frozen=True)
class Step:
    """A request to a composing model: `inputs` and `outputs` pair its tensors with the ensemble's.

    An empty `version` is the highest that serves.
    """

    model: str
    version: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]

    @functools.cached_property
    def taken(self) -> tuple[str, ...]:
        """The ensemble's tensors that it needs, each once."""
        return tuple(dict.fromkeys(tensor for _, tensor in self.inputs))


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What has to be done for some of an ensemble's outputs.

    `takes` has the tensors that each step needs, `makes` what of its outputs is needed (as its model is asked for it in
    `asks`), `takers` the steps by tensor.
    `uses` counts for each tensor the steps that take it, and one more where it is an answer.
    """

    outputs: tuple[str, ...]
    takes: Mapping[int, tuple[str, ...]]
    makes: Mapping[int, tuple[tuple[str, str], ...]]
    asks: Mapping[int, list[border.RequestedOutput]]
    takers: Mapping[str, tuple[int, ...]]
    uses: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The steps of an ensemble in the order of its configuration."""

    steps: tuple[Step, ...]

    @functools.cached_property
    def models(self) -> tuple[tuple[str, str], ...]:
        """The composing models and which version of each, every pair once."""
        return tuple(dict.fromkeys((step.model, step.version) for step in self.steps))

    @functools.cached_property
    def names(self) -> frozenset[str]:
        return frozenset(step.model for step in self.steps)

    @functools.cached_property
    def makers(self) -> Mapping[str, int]:
        """The step that makes a tensor; inputs of the ensemble have none."""
        return {tensor: index for index, step in enumerate(self.steps) for _, tensor in step.outputs}

    def plan(self, outputs: Iterable[str]) -> Plan:
        """Only steps that somebody needs for these outputs are in it."""
        wanted = tuple(outputs)
        needed = self._needed(wanted)
        steps = [(index, self.steps[index]) for index in sorted(needed)]
        takers: dict[str, list[int]] = collections.defaultdict(list)
        for index, step in steps:
            for tensor in step.taken:
                takers[tensor].append(index)
        uses = collections.Counter({tensor: len(taking) for tensor, taking in takers.items()})
        uses.update(wanted)
        makes = {index: tuple(pair for pair in step.outputs if uses[pair[1]]) for index, step in steps}
        return Plan(
            outputs=wanted,
            takes={index: step.taken for index, step in steps},
            makes=makes,
            asks={index: [border.RequestedOutput(inner) for inner, _ in pairs] for index, pairs in makes.items()},
            takers={tensor: tuple(taking) for tensor, taking in takers.items()},
            uses={tensor: count for tensor, count in uses.items() if count},
        )

    def _needed(self, outputs: Iterable[str]) -> set[int]:
        needed: set[int] = set()
        left = list(outputs)
        while left:
            index = self.makers.get(left.pop())
            if index is not None and index not in needed:
                needed.add(index)
                left += self.steps[index].taken
        return needed


def check_flow(name: str, graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raises InferenceError INVALID_ARGUMENT unless every tensor is made once, in time, and used.

    `inputs` and `outputs` are the ensemble's own.
    """
    if not graph.steps:
        raise _invalid(f"must specify 'step' for ensemble '{name}'")
    for index, step in enumerate(graph.steps):
        _check_step(name, index, step)
    _check_makers(name, graph, inputs)
    known = {tensor for step in graph.steps for _, tensor in (*step.inputs, *step.outputs)}
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            if tensor not in known:
                raise _invalid(f"ensemble {kind} '{tensor}' for ensemble '{name}' is not used")
    _check_order(name, graph, inputs, outputs)
    _check_used(name, graph, outputs)


def _check_step(name: str, index: int, step: Step) -> None:
    for field, given in (("model_name", step.model), ("input_map", step.inputs), ("output_map", step.outputs)):
        if not given:
            raise _invalid(f"must specify '{field}' in step {index} of ensemble '{name}'")


def _check_makers(name: str, graph: Graph, inputs: Sequence[str]) -> None:
    made: set[str] = set()
    for index, step in enumerate(graph.steps):
        for _, tensor in step.outputs:
            if tensor in inputs:
                raise _invalid(f"ensemble tensor '{tensor}' of ensemble '{name}' is an input and made by step {index}")
            if tensor in made:
                raise _invalid(
                    f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble '{name}' step {index}"
                )
            made.add(tensor)


def _check_order(name: str, graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Every tensor can be made from the inputs: none is missing, and no steps wait for each other."""
    there = set(inputs)
    left = dict(enumerate(graph.steps))
    while ready := [index for index, step in left.items() if there.issuperset(step.taken)]:
        for index in ready:
            there.update(tensor for _, tensor in left.pop(index).outputs)
    for tensor in outputs:
        if tensor not in there:
            raise _invalid(f"output '{tensor}' for ensemble '{name}' is not written{_why(graph, left, there)}")
    if left:
        tensor = next(tensor for step in left.values() for tensor in step.taken if tensor not in there)
        raise _invalid(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'{_why(graph, left, there)}")


def _why(graph: Graph, left: Mapping[int, Step], there: set[str]) -> str:
    """The tensors that steps wait for in vain."""
    for index, step in left.items():
        lacking = [tensor for tensor in step.taken if tensor not in there and tensor not in graph.makers]
        if lacking:
            return f": step {index} needs '{lacking[0]}', which is no input of the ensemble and which no step makes"
    return f": steps {sorted(left)} wait for each other" if left else ""


def _check_used(name: str, graph: Graph, outputs: Sequence[str]) -> None:
    used = {*outputs, *(tensor for step in graph.steps for _, tensor in step.inputs)}
    for tensor in graph.makers:
        if tensor not in used:
            raise _invalid(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'")


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as `model` declares it."""

    model: str
    datatype: str
    dims: tuple[int, ...]
    batched: bool

    @property
    def full(self) -> tuple[int, ...]:
        return (_VARIABLE, *self.dims) if self.batched else self.dims


def check_models(ensemble: spec.ModelSpec, graph: Graph, models: Mapping[tuple[str, str], spec.ModelSpec]) -> None:
    """Raises InferenceError INVALID_ARGUMENT unless the composing models fit together.

    `models` are those that serve, by name and version as the steps say them.
    """
    tensors: dict[str, _Tensor] = {}
    for each in (*ensemble.inputs, *ensemble.outputs):
        dims = each.dims if each.reshape is None else each.reshape
        tensors[each.name] = _Tensor(ensemble.name, each.datatype, dims, bool(ensemble.max_batch_size))
    for step in graph.steps:
        model = models[step.model, step.version]
        if model.decoupled:
            raise _invalid(
                f"ensemble {ensemble.name} contains model {model.name}, which is decoupled: this is not supported"
            )
        if model.max_batch_size and model.max_batch_size < ensemble.max_batch_size:
            raise _invalid(
                f"ensemble {ensemble.name} allows maximum batch size {ensemble.max_batch_size}, but it contains model "
                f"{model.name} which only allows maximum batch size to be {model.max_batch_size}"
            )
        _check_inputs(ensemble.name, step, model, tensors)
        _check_outputs(ensemble.name, step, model, tensors)


def _check_inputs(name: str, step: Step, model: spec.ModelSpec, tensors: dict[str, _Tensor]) -> None:
    given = dict(step.inputs)
    for inner, tensor in step.inputs:
        if inner not in model.inputs_by_name:
            raise _invalid(
                f"in ensemble {name}, ensemble tensor {tensor} is mapping to non-existing input {inner} in model {model.name}"
            )
    for each in model.inputs:
        if each.name in given:
            _agree(name, given[each.name], each, model, tensors)
        elif not each.optional:
            raise _invalid(
                f"in ensemble {name}, input {each.name} in model {model.name} is not mapped to any ensemble tensors"
            )


def _check_outputs(name: str, step: Step, model: spec.ModelSpec, tensors: dict[str, _Tensor]) -> None:
    for inner, tensor in step.outputs:
        found = model.outputs_by_name.get(inner)
        if found is None:
            raise _invalid(
                f"in ensemble {name}, ensemble tensor {tensor} is mapped from non-existing output {inner} in model {model.name}"
            )
        _agree(name, tensor, found, model, tensors)


def _agree(name: str, tensor: str, inner: spec.TensorSpec, model: spec.ModelSpec, tensors: dict[str, _Tensor]) -> None:
    """What is known of a tensor of the ensemble, and what a model's own says of it."""
    found = _Tensor(model.name, inner.datatype, inner.dims, bool(model.max_batch_size))
    known = tensors.setdefault(tensor, found)
    if known.datatype != found.datatype:
        raise _inconsistent(name, tensor, "data type", (known, _type(known)), (found, _type(found)))
    if not (fits(known.dims, found.dims) or fits(known.full, found.full)):
        raise _inconsistent(name, tensor, "shape", (known, _listed(known.full)), (found, _listed(found.full)))


def fits(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a tensor can have both shapes, -1 being any size."""
    return len(one) == len(other) and all(
        mine == theirs or _VARIABLE in (mine, theirs) for mine, theirs in zip(one, other, strict=True)
    )


def _inconsistent(
    name: str, tensor: str, what: str, one: tuple[_Tensor, str], other: tuple[_Tensor, str]
) -> border.InferenceError:
    (known, mine), (found, theirs) = one, other
    return _invalid(
        f"in ensemble {name}, ensemble tensor {tensor}: inconsistent {what}: {mine} is inferred from model {known.model} "
        f"while {theirs} is inferred from model {found.model}"
    )


def _type(tensor: _Tensor) -> str:
    """The name of a datatype in configurations."""
    return "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"


def _listed(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)

"""Ensembles, decided: what runs when, what is kept, which graphs are refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker import composition
from gpu_worker.engine import batching, border, flow, graph, spec


def step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> graph.Step:
    return graph.Step(
        model,
        "",
        tuple((f"in{number}", tensor) for number, tensor in enumerate(inputs)),
        tuple((f"out{number}", tensor) for number, tensor in enumerate(outputs)),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """An ensemble that can work; its steps in any order, some of its outputs asked for."""

    made: graph.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    asked: tuple[str, ...]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Each step takes tensors that are there and makes new ones; what nobody takes is an output."""
    inputs = tuple(f"i{number}" for number in range(draw(st.integers(1, 3))))
    there, steps = list(inputs), []
    for number in range(draw(st.integers(1, 8))):
        taken = draw(st.lists(st.sampled_from(there), min_size=1, max_size=4))
        makes = [f"t{number}_{index}" for index in range(draw(st.integers(1, 3)))]
        steps.append(step(f"m{number}", taken, makes))
        there += makes
    used = {tensor for each in steps for tensor in each.taken}
    inputs = tuple(each for each in inputs if each in used)
    made = [each for each in there if each[0] == "t"]
    outputs = tuple(each for each in made if each not in used or draw(st.booleans()))
    asked = draw(st.lists(st.sampled_from(outputs), min_size=1, unique=True))
    return Case(graph.Graph(tuple(draw(st.permutations(steps)))), inputs, outputs, tuple(asked))


def needed_by_hand(case: Case) -> set[int]:
    """Which steps somebody needs, found from the outputs backwards one by one."""
    wanted, found = set(case.asked), set[int]()
    while True:
        more = {
            index
            for index, each in enumerate(case.made.steps)
            if index not in found and wanted & {tensor for _, tensor in each.outputs}
        }
        if not more:
            return found
        found |= more
        wanted |= {tensor for index in more for tensor in case.made.steps[index].taken}


@given(cases(), st.data())
def test_each_needed_step_runs_once_after_its_inputs_and_nothing_is_kept_too_long(
    case: Case, data: st.DataObject
) -> None:
    plan = case.made.plan(case.asked)
    running = flow.Flow[str](plan)
    ready = running.put([(name, name) for name in case.inputs])
    there, ran = set(case.inputs), list[int]()
    while ready:
        index = ready.pop(data.draw(st.integers(0, len(ready) - 1)))
        each = case.made.steps[index]
        assert there.issuperset(each.taken)
        assert running.take(index) == {name: name for name in each.taken}
        ran.append(index)
        there |= {tensor for _, tensor in each.outputs}
        assert not running.complete
        ready += running.put([(tensor, tensor) for _, tensor in plan.makes[index]])
        left = [case.made.steps[other] for other in needed_by_hand(case) - set(ran)]
        wanted = {tensor for other in left for tensor in other.taken} | set(case.asked)
        assert running.kept == there & wanted
    assert sorted(ran) == sorted(needed_by_hand(case))
    assert running.complete
    assert running.answer() == {name: name for name in case.asked}
    assert not running.kept


@given(cases(), st.data())
def test_no_step_starts_while_a_tensor_is_missing(case: Case, data: st.DataObject) -> None:
    lacking = data.draw(st.sampled_from(case.inputs))
    running = flow.Flow[str](case.made.plan(case.asked))
    ready = running.put([(name, None) for name in case.inputs if name != lacking])
    while ready:
        index = ready.pop()
        assert lacking not in case.made.steps[index].taken
        running.take(index)
        ready += running.put([(tensor, tensor) for _, tensor in case.made.steps[index].outputs])
    touched = needed_by_hand(case)
    depends = any(lacking in case.made.steps[index].taken for index in touched)
    assert running.complete != depends


def test_a_step_cannot_start_twice_or_too_soon() -> None:
    made = graph.Graph((step("a", ["i"], ["t"]), step("b", ["t"], ["o"])))
    running = flow.Flow[int](made.plan(["o"]))
    assert running.put([("i", 1)]) == [0]
    assert running.put([("i", 2)]) == [], "a tensor comes once"
    assert running.take(0) == {"i": 1}
    for index in (0, 1):
        with pytest.raises(ValueError, match=f"step {index} cannot start"):
            running.take(index)


@given(cases())
def test_a_graph_that_can_work_is_let_through(case: Case) -> None:
    graph.check_flow("e", case.made, case.inputs, case.outputs)


@given(cases(), st.data())
def test_a_graph_with_a_fault_is_refused(case: Case, data: st.DataObject) -> None:
    steps = list(case.made.steps)
    at = data.draw(st.integers(0, len(steps) - 1))
    kind = data.draw(st.sampled_from(["twice", "unused", "missing", "input made", "no steps", "circle"]))
    inputs, outputs = case.inputs, case.outputs
    if kind == "twice":
        steps.append(dataclasses.replace(steps[at], model="again"))
    elif kind == "unused":
        steps[at] = dataclasses.replace(steps[at], outputs=(*steps[at].outputs, ("more", "nobody")))
    elif kind == "missing":
        steps[at] = dataclasses.replace(steps[at], inputs=(*steps[at].inputs, ("more", "nowhere")))
    elif kind == "input made":
        steps[at] = dataclasses.replace(steps[at], outputs=(*steps[at].outputs, ("more", inputs[0])))
    elif kind == "no steps":
        steps = []
    else:
        steps[at] = dataclasses.replace(steps[at], inputs=(*steps[at].inputs, ("more", steps[at].outputs[0][1])))
    with pytest.raises(border.InferenceError) as refused:
        graph.check_flow("e", graph.Graph(tuple(steps)), inputs, outputs)
    assert refused.value.kind is border.ErrorKind.INVALID_ARGUMENT
    assert "'e'" in refused.value.message


@pytest.mark.parametrize(
    ("steps", "fragment"),
    [
        ([("", ["i"], ["o"])], "must specify 'model_name' in step 0 of ensemble 'e'"),
        ([("a", [], ["o"])], "must specify 'input_map' in step 0 of ensemble 'e'"),
        ([("a", ["i"], [])], "must specify 'output_map' in step 0 of ensemble 'e'"),
        (
            [("a", ["i"], ["o"]), ("b", ["i"], ["o"])],
            "'o' can appear in an output map only once for ensemble 'e' step 1",
        ),
        ([("a", ["x"], ["o"])], "ensemble input 'i' for ensemble 'e' is not used"),
        ([("a", ["i"], ["x"])], "ensemble output 'o' for ensemble 'e' is not used"),
        ([("a", ["i", "x"], ["o"])], "output 'o' for ensemble 'e' is not written: step 0 needs 'x', which is no input"),
        (
            [("a", ["i", "x"], ["o", "y"]), ("b", ["y"], ["x"])],
            r"output 'o' for ensemble 'e' is not written: steps \[0, 1\] wait for each other",
        ),
        ([("a", ["i"], ["o", "x"])], "ensemble tensor 'x' is unused in ensemble 'e'"),
    ],
)
def test_faults_are_told_in_words(steps: Sequence[tuple[str, list[str], list[str]]], fragment: str) -> None:
    with pytest.raises(border.InferenceError, match=fragment):
        graph.check_flow("e", graph.Graph(tuple(step(*each) for each in steps)), ["i"], ["o"])


def model(
    name: str, inputs: Sequence[spec.TensorSpec], outputs: Sequence[spec.TensorSpec], batch: int = 0
) -> spec.ModelSpec:
    return spec.ModelSpec(
        name=name,
        version="1",
        platform="",
        max_batch_size=batch,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batching=batching.Config(),
    )


def fit(inner: spec.ModelSpec, datatype: str = "FP32", dims: tuple[int, ...] = (4,), batch: int = 0) -> None:
    """An ensemble of one step, `i` to `o`."""
    whole = model("e", [spec.TensorSpec("i", datatype, dims)], [spec.TensorSpec("o", datatype, dims)], batch)
    made = graph.Graph((graph.Step("m", "", (("a", "i"),), (("b", "o"),)),))
    graph.check_models(whole, made, {("m", ""): inner})


def inner(dims: tuple[int, ...] = (4,), batch: int = 0, *more: spec.TensorSpec) -> spec.ModelSpec:
    return model("m", [spec.TensorSpec("a", "FP32", dims), *more], [spec.TensorSpec("b", "FP32", dims)], batch)


@pytest.mark.parametrize(
    ("dims", "batch", "own_dims", "own_batch"),
    [
        ((4,), 0, (4,), 0),
        ((-1,), 0, (4,), 0),
        ((4,), 8, (4,), 8),
        ((4,), 0, (4,), 8),
        ((-1, 4), 0, (4,), 8),
        ((4,), 8, (-1, 4), 0),
        ((4,), 8, (4,), 0),
        ((4,), 4, (4,), 8),
    ],
)
def test_shapes_that_can_agree_are_let_through(
    dims: tuple[int, ...], batch: int, own_dims: tuple[int, ...], own_batch: int
) -> None:
    fit(inner(own_dims, own_batch), dims=dims, batch=batch)


def test_models_that_do_not_fit_are_told_in_words() -> None:
    with pytest.raises(
        border.InferenceError, match="ensemble tensor i: inconsistent data type: TYPE_STRING is inferred"
    ):
        fit(inner(), datatype="BYTES")
    with pytest.raises(
        border.InferenceError, match=r"inconsistent shape: \[-1,4\] is inferred from model e while \[5\]"
    ):
        fit(inner((5,)), batch=2)
    with pytest.raises(border.InferenceError, match="ensemble e allows maximum batch size 9, but it contains model m"):
        fit(inner((4,), 8), batch=9)
    with pytest.raises(border.InferenceError, match="input c in model m is not mapped to any ensemble tensors"):
        fit(inner((4,), 0, spec.TensorSpec("c", "FP32", (4,))))
    fit(inner((4,), 0, spec.TensorSpec("c", "FP32", (4,), optional=True)))
    with pytest.raises(border.InferenceError, match="ensemble tensor i is mapping to non-existing input a in model m"):
        fit(model("m", [], [spec.TensorSpec("b", "FP32", (4,))]))
    with pytest.raises(
        border.InferenceError, match="ensemble tensor o is mapped from non-existing output b in model m"
    ):
        fit(model("m", [spec.TensorSpec("a", "FP32", (4,))], []))


COMPOSED = st.dictionaries(st.sampled_from("abcdef"), st.frozensets(st.sampled_from("abcdef"), max_size=4), max_size=6)


@given(COMPOSED)
def test_circles_are_found_exactly_where_they_are(composed: dict[str, frozenset[str]]) -> None:
    for name in composed:
        way = composition.circle(name, composed)
        reached, left = set[str](), [name]
        while left:
            fresh = composed.get(left.pop(), frozenset()) - reached
            reached |= fresh
            left += fresh
        assert bool(way) == (name in reached)
        if way:
            assert way[0] == way[-1] == name
            assert all(after in composed[before] for before, after in itertools.pairwise(way))


@given(COMPOSED, st.frozensets(st.sampled_from("abcdef")))
def test_ensembles_come_before_what_they_are_composed_of(
    composed: dict[str, frozenset[str]], names: frozenset[str]
) -> None:
    straight = {name: frozenset(each for each in below if each > name) for name, below in composed.items()}
    waves = composition.waves(names, straight)
    assert sorted(name for wave in waves for name in wave) == sorted(names)
    place = {name: number for number, wave in enumerate(waves) for name in wave}
    for name in names:
        assert all(place[each] > place[name] for each in straight.get(name, ()) if each in place)

"""What a model of sequences is told beside its requests: where sequences begin and end, which they are, and their states.

Pure. Rows are those of a batch, None where a slot has nothing to run: there the model is told "not ready" and gets zeros
for all else. A state is what the model gave as that output for the sequence's last request; a new sequence has the
initial one. Kinds of controls and how states go round are Triton's (`ModelSequenceBatching`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_worker.engine import border, sequences, tensors

START = "CONTROL_SEQUENCE_START"
READY = "CONTROL_SEQUENCE_READY"
END = "CONTROL_SEQUENCE_END"
CORRID = "CONTROL_SEQUENCE_CORRID"

_Rows = Sequence[sequences.Row | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """An input `name` of the model with one element for each row: `off` or `on`, or the sequence's id."""

    kind: str
    name: str
    datatype: str
    off: float | bool = 0
    on: float | bool = 1


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class State:
    """The output of one request that is the input of the next; `initial` is one row where the model batches."""

    input: str
    output: str
    initial: tensors.Array


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Sequencing:
    """How a model takes sequences; one that does not batch (`batched`) has one row and no dimension for it."""

    policy: sequences.Config
    controls: tuple[Control, ...] = ()
    states: tuple[State, ...] = ()
    batched: bool = True


def fresh(states: Sequence[State]) -> tuple[tuple[int, ...], ...]:
    """What the states of a new sequence have as their shapes."""
    return tuple(state.initial.shape for state in states)


def sample(size: int) -> _Rows:
    """Rows of sequences that are one request long, to try a model with."""
    request = sequences.Request(1, start=True, end=True, arrival_ns=0)
    return [sequences.Row(request, sequences.Sequence(1, (), 0), begins=True, key=())] * size


def check_id(model: str, sequencing: Sequencing, given: sequences.Id) -> None:
    """Raises InferenceError INVALID_ARGUMENT where the model cannot be told this id."""
    for control in sequencing.controls:
        if control.kind != CORRID or control.datatype == "BYTES":
            continue
        bounds = np.iinfo(tensors.DATATYPES[control.datatype].dtype)
        if isinstance(given, str) or not bounds.min <= given <= bounds.max:
            raise border.InferenceError(
                border.ErrorKind.INVALID_ARGUMENT,
                f"sequence_id of a request to model '{model}' must be an integer up to {bounds.max}: its input "
                f"'{control.name}' is {control.datatype}",
            )


def feeds(sequencing: Sequencing, rows: _Rows) -> dict[str, tensors.Array]:
    """The controls and states for these rows, by the model's inputs."""
    found = {control.name: _told(control, rows, batched=sequencing.batched) for control in sequencing.controls}
    for index, state in enumerate(sequencing.states):
        found[state.input] = _states(index, state, rows)
    return found


def keep(rows: _Rows, found: Sequence[tensors.Array]) -> None:
    """Leaves each sequence the states that the model gave for its row; `found` are the outputs of the states."""
    for index, row in enumerate(rows):
        if row is not None:
            # A part of a batch would keep all of it in memory.
            own = [array if len(rows) == 1 else array[index : index + 1].copy() for array in found]
            row.sequence.state = own
            row.sequence.shape = tuple(array.shape for array in own)


def _told(control: Control, rows: _Rows, *, batched: bool) -> tensors.Array:
    values = [_value(control, row) for row in rows]
    dtype = tensors.DATATYPES[control.datatype].dtype
    array = np.array(values, dtype)
    return array.reshape(-1, 1) if batched else array


def _value(control: Control, row: sequences.Row | None) -> Any:
    if control.kind == CORRID:
        given = row.sequence.id if row is not None else ""
        return str(given) if control.datatype == "BYTES" else given or 0
    return control.on if row is not None and _holds(control.kind, row) else control.off


def _holds(kind: str, row: sequences.Row) -> bool:
    return {START: row.begins, END: row.request.end, READY: True}[kind]


def _states(index: int, state: State, rows: _Rows) -> tensors.Array:
    parts = [None if row is None else _state(index, state, row) for row in rows]
    like = next(part for part in parts if part is not None)
    if len(parts) == 1:
        return like
    nothing = np.full(like.shape, "" if like.dtype == object else 0, like.dtype)
    return np.concatenate([nothing if part is None else part for part in parts])


def _state(index: int, state: State, row: sequences.Row) -> tensors.Array:
    held = row.sequence.state
    array: tensors.Array = state.initial if held is None else held[index]
    return array

"""Ensembles for tests: their configurations, and their places in a repository."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""Datatype and dims by name."""

Step = tuple[str, Mapping[str, str], Mapping[str, str]]
"""A model (`name` or `name:version`), its inputs and its outputs by the ensemble's tensors."""


def config(inputs: Tensors, outputs: Tensors, steps: Sequence[Step], batch: int = 0, more: str = "") -> str:
    """A config.pbtxt."""
    return (
        f'platform: "ensemble"\nmax_batch_size: {batch}\ninput [{_tensors(inputs)}]\noutput [{_tensors(outputs)}]\n'
        f"ensemble_scheduling {{step [{', '.join(map(_step, steps))}]}}\n{more}\n"
    )


def put(repository: pathlib.Path, name: str, text: str, *versions: int) -> None:
    """Writes an ensemble; its versions are empty directories."""
    for version in versions or (1,):
        (repository / name / str(version)).mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(text)


def chain(*models: str, dims: Sequence[int] = (4,), batch: int = 8, more: str = "") -> str:
    """IN through each of these models, from INPUT to OUTPUT, to OUT."""
    names = ["IN", *(f"MID{index}" for index in range(len(models) - 1)), "OUT"]
    steps = [
        (model, {"INPUT": before}, {"OUTPUT": after})
        for model, before, after in zip(models, names, names[1:], strict=False)
    ]
    return config({"IN": ("FP32", dims)}, {"OUT": ("FP32", dims)}, steps, batch, more)


def _tensors(tensors: Tensors) -> str:
    return ", ".join(
        f'{{name: "{name}" data_type: TYPE_{"STRING" if datatype == "BYTES" else datatype} dims: {list(dims)}}}'
        for name, (datatype, dims) in tensors.items()
    )


def _step(step: Step) -> str:
    model, inputs, outputs = step
    name, _, version = model.partition(":")
    maps = [("input_map", inputs), ("output_map", outputs)]
    told = " ".join(
        f'{field} {{key: "{key}" value: "{value}"}}' for field, pairs in maps for key, value in pairs.items()
    )
    return f'{{model_name: "{name}" model_version: {version or -1} {told}}}'

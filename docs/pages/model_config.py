"""The page of a model's configuration, from the table that decides what is honoured."""

from __future__ import annotations

from collections.abc import Iterator

from docs.pages import markdown
from gpu_worker.repository import fields, tuning

_OPENING = """\
tms-worker reads models in Triton's layout: `<repository>/<model>/<version>/model.onnx`, with a `config.pbtxt` beside the
versions. A field that is not honoured is refused when the model is loaded, with an error that names it and the reason. The
tables are generated from `gpu_worker/repository/fields.py` and `tuning.py`."""

_COMPLETION = """\
## What is completed

- Backend and platform: from each other, from the files of the versions, from the directory's name (`<model>.onnxruntime`).
- Where inputs or outputs are missing, from the model itself: inputs, outputs, `max_batch_size` (where the first dimension of all is
  variable: `--backend-config=onnxruntime,default-max-batch-size=N`, 4 unless given) and `dynamic_batching` (where batches may be larger than 1).
  A tensor without dimensions beside the batch becomes one with `dims: [1]` and an empty `reshape`.
- Always: `version_policy`, `instance_group`, `default_model_filename`, `preferred_batch_size` of a dynamic batcher.
- With `--disable-auto-complete-config` nothing is taken from the model, and missing inputs or outputs are an error.

The configuration call shows the completed configuration. Shapes that differ from the model's own fail the load, with both
shapes in the error."""


def text() -> str:
    """The fields by what becomes of them, then parameters."""
    lines = ["# Model configuration", "", _OPENING, "", _COMPLETION, ""]
    for title, standings in (
        ("Honoured", {fields.Standing.HONOURED}),
        ("Accepted, without effect", {fields.Standing.WITHOUT_EFFECT}),
        ("Refused until it is done", {fields.Standing.LATER}),
        ("Refused", {fields.Standing.REFUSED}),
    ):
        lines += [f"## {title}", "", *_table(field for field in fields.FIELDS if field.standing in standings)]
    lines += ["## Parameters", "", *_parameters()]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Iterator[fields.Field]) -> Iterator[str]:
    yield from ("| field | |", "| --- | --- |")
    yield from (f"| `{field.shown}` | {markdown.cell(field.words)} |" for field in rows)
    yield ""


def _parameters() -> Iterator[str]:
    yield from ("| `parameters` key | meaning |", "| --- | --- |")
    yield from (f"| `{key}` | {markdown.cell(words)} |" for key, words in tuning.PARAMETERS.items())
    options = ", ".join(f"`{key}`" for key in tuning.CUDA_OPTIONS)
    yield from ("", f"Parameters of the accelerator `cuda`: {options}.")

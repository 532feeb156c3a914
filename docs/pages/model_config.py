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


_LIFE = """\
## When models are loaded, and what a change touches

- `--model-control-mode=none`: all models at start, nothing afterwards. `explicit`: what `--load-model` names (`*`: all) at start, then what clients
  load and unload. `poll`: as `none`, and the repositories are looked at every `--repository-poll-secs`: models, versions, configurations and files
  that come, change or go are followed. A change counts once two looks, a second apart, have seen the same. Whoever writes a model for longer than
  that should rename the whole directory into place; a model that was caught half written keeps serving as it was, and is tried again when
  it changes. A repository that cannot be read changes nothing.
- A name that is in several repositories is not loaded. One that serves when that happens goes on serving.
- A load whose only change is in `instance_group` loads the instances that are wanted beside those that there are, and ends those that are not, after
  what they run; statistics go on. Versions whose files and configuration are the same stay as they are. Everything else is loaded anew beside
  the old, which serves until the new is ready; where that fails, the old stays. An instance that stays keeps the number of threads that it had.
- A `config` that comes with a load holds until a load without one; files that come with it (`file:<path>`, at most 1000 of 2 GiB together) are the
  only ones of the model then. They lie in the directory for temporary files and are removed with the model, or by the next worker to start after a crash.
- With `--strict-readiness` the server is ready while every model that was to be loaded serves: at start, by a client, or because it is in a polled
  repository. An unload ends that.
- Links in repositories are followed: who may write there may place any file."""


def text() -> str:
    """The fields by what becomes of them, then parameters."""
    lines = ["# Model configuration", "", _OPENING, "", _COMPLETION, "", _LIFE, ""]
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

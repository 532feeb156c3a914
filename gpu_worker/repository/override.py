"""A model that came with its load call: its files, written to a directory of their own.

Only the given files exist in it. No path leaves it, and it is gone when the model is.
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Mapping

from gpu_worker.engine import border
from gpu_worker.repository import layout


def write(name: str, files: Mapping[str, bytes]) -> layout.ModelDirectory:
    """The files by relative path, written below a new temporary directory. Raises InferenceError for bad paths."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tms-model-"))
    try:
        for relative, content in files.items():
            path = layout.inside(directory, relative)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except (OSError, border.InferenceError) as error:
        remove(directory)
        if isinstance(error, border.InferenceError):
            raise
        raise border.InferenceError(
            border.ErrorKind.INVALID_ARGUMENT, f"files of model '{name}' cannot be written: {error}"
        ) from None
    return layout.ModelDirectory(name, directory)


def remove(directory: pathlib.Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)

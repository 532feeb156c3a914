"""The ready file: the bound ports as JSON, there exactly while the worker is ready to serve."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping


def write(path: pathlib.Path | None, ports: Mapping[str, int | None]) -> None:
    """Whole or not at all: whoever sees the file can read it."""
    if path is not None:
        whole = path.with_name(path.name + ".new")
        whole.write_text(json.dumps(ports))
        whole.replace(path)


def remove(path: pathlib.Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)

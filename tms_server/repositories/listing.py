"""What a repository answers: a model's files, and its configuration if it has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tms_server.model import errors, source
from tms_server.repositories import options, uris

CONFIG = "config.pbtxt"
MOST_CONFIG_BYTES = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """A model as found. `uri` is concrete; `config` is the text of its configuration, None without one."""

    uri: str
    files: tuple[source.SourceFile, ...]
    config: bytes | None


def bounded(files: Iterable[source.SourceFile], limits: options.Limits) -> tuple[source.SourceFile, ...]:
    """The files in order of their paths; InvalidField when there are too many or they are too big."""
    taken: list[source.SourceFile] = []
    total_bytes = 0
    for file in files:
        taken.append(file)
        total_bytes += file.size_bytes
        if len(taken) > limits.most_files:
            raise errors.InvalidField("uri", f"the directory holds more than {limits.most_files} files; name one model")
        if total_bytes > limits.most_bytes:
            raise errors.InvalidField("uri", f"the directory holds more than {limits.most_bytes} bytes; name one model")
        uris.check_file(file.path)
    return tuple(sorted(taken, key=lambda each: each.path))


def check_config_size(size_bytes: int) -> None:
    """InvalidField for a configuration that is too big to be one."""
    if size_bytes > MOST_CONFIG_BYTES:
        raise errors.InvalidField("uri", f"{CONFIG} is bigger than {MOST_CONFIG_BYTES} bytes")

"""What an unpacked archive held, kept beside the blobs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import secrets
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive; `path` is plain and relative."""

    path: str
    size_bytes: int
    sha256: str


def read(path: pathlib.Path) -> tuple[Member, ...] | None:
    """None where there is none, or none that can be read."""
    try:
        parts = [line.split(" ", 2) for line in path.read_text(encoding="utf-8").splitlines()]
        return tuple(Member(name, int(size_bytes), sha256) for sha256, size_bytes, name in parts)
    except (FileNotFoundError, ValueError):
        return None


def write(path: pathlib.Path, members: Iterable[Member]) -> None:
    """Seen whole or not at all."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(f"{each.sha256} {each.size_bytes} {each.path}\n" for each in members)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)

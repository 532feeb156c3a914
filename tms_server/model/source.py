"""Where a model's bytes come from, pinned: which files, how big, which version of each."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib

from tms_server.model import ids


class Framework(enum.StrEnum):
    """What executes a model."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    PYTHON = "python"
    PYTORCH = "pytorch"
    TENSORFLOW = "tensorflow"
    ENSEMBLE = "ensemble"


class Layout(enum.Enum):
    """What a concrete URI names."""

    TREE = "tree"
    FILE = "file"
    ARCHIVE = "archive"


ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


def layout_of(uri: str) -> Layout:
    """Over HTTP a directory ends with a slash, as there it is another thing than a file of its name."""
    if not uri.startswith(("http://", "https://")) or uri.endswith("/"):
        return Layout.TREE
    return Layout.ARCHIVE if uri.endswith(ARCHIVES) else Layout.FILE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a model directory.

    `path` is relative, with forward slashes and no ``..``; `version` is an ETag, a version id or a modification time in
    nanoseconds; `sha256` is empty until the first fetch has learnt it.
    """

    path: str
    size_bytes: int
    version: str
    sha256: str = ""


# Without slots: what is worked out of it is asked for again and again, and is kept in its dictionary.
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What a model URI resolved to. `uri` is concrete, never model://."""

    uri: str
    framework: Framework
    files: tuple[SourceFile, ...]

    @property
    def layout(self) -> Layout:
        return layout_of(self.uri)

    @functools.cached_property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @functools.cached_property
    def digest(self) -> ids.Digest:
        """sha256 over the sorted paths, sizes and versions: which bytes are meant."""
        lines = sorted(f"{file.path}\0{file.size_bytes}\0{file.version}\n" for file in self.files)
        return ids.Digest(hashlib.sha256("".join(lines).encode()).hexdigest())

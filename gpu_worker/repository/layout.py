"""Which models the repositories hold, and what lies in a model's directory.

Reads directories only when asked, remembers nothing. A name from outside is looked up among the directory's entries,
never joined to a path, so no name leads out of a repository.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

import structlog

from gpu_worker.engine import border

_VERSION = re.compile(r"0|[1-9][0-9]*")

_File = tuple[str, int, int, int]
Fingerprint = tuple[_File, ...]
"""Path, size in bytes and modification time in nanoseconds of every file of a model."""

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model's directory, which exists."""

    name: str
    path: pathlib.Path

    def config_text(self) -> str | None:
        """The text of config.pbtxt, None where there is none. Raises InferenceError where it cannot be read."""
        try:
            return (self.path / "config.pbtxt").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise _invalid(f"config.pbtxt of model '{self.name}' cannot be read: {error}") from None

    def versions(self) -> dict[int, pathlib.Path]:
        """Version directories by number, ascending."""
        found: dict[int, pathlib.Path] = {}
        for entry in self.path.iterdir():
            if entry.is_dir() and _VERSION.fullmatch(entry.name):
                found[int(entry.name)] = entry
            elif entry.is_dir() and entry.name.isdecimal():
                log.warning("version.ignored", model=self.name, directory=entry.name, reason="leading zero")
        return dict(sorted(found.items()))

    def fingerprint(self) -> Fingerprint:
        """Changes whenever a file of the model does."""
        return tuple(sorted(self._files()))

    def inside(self, relative: str) -> pathlib.Path:
        """The path of a file that must lie in this directory; raises InferenceError for any other."""
        return inside(self.path, relative)

    def _files(self) -> Iterator[_File]:
        for path in self.path.rglob("*"):
            if path.is_file():
                stat = path.stat()
                # A cache may give all its files one time: another file in the same place is told by its number.
                yield str(path.relative_to(self.path)), stat.st_size, stat.st_mtime_ns, stat.st_ino


class Repository:
    """One or several directories of models; a name must be unique over all of them."""

    def __init__(self, roots: Sequence[pathlib.Path]) -> None:
        for root in roots:
            if not root.is_dir():
                raise _invalid(f"model repository '{root}' is not a directory")
        self._roots = tuple(dict.fromkeys(root.resolve() for root in roots))

    def names(self) -> list[str]:
        """Every model there is, sorted."""
        return sorted({path.name for root in self._roots for path in _models(root)})

    def find(self, name: str) -> ModelDirectory:
        """The model's directory. Raises InferenceError: INTERNAL where there is none, INVALID_ARGUMENT for several."""
        found = [path for root in self._roots for path in _models(root) if path.name == name]
        if not found:
            raise border.InferenceError(
                border.ErrorKind.INTERNAL, f"failed to load '{name}', failed to poll from model repository"
            )
        if len(found) > 1:
            raise _invalid(f"model '{name}' is not unique: it is in {len(found)} model repositories")
        return ModelDirectory(name, found[0])


def inside(base: pathlib.Path, relative: str) -> pathlib.Path:
    """`base/relative`; raises InferenceError where that is not below `base`.

    Links are followed: who may place them in a repository may place the files themselves.
    """
    path = pathlib.PurePosixPath(relative)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in relative:
        raise _invalid(f"file path '{relative}' must stay inside the model directory")
    return base / path


def _models(root: pathlib.Path) -> Iterator[pathlib.Path]:
    try:
        entries = list(root.iterdir())
    except OSError as error:
        raise border.InferenceError(
            border.ErrorKind.INTERNAL, f"model repository '{root}' cannot be read: {error}"
        ) from None
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            yield entry


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)

"""Which models the repositories hold, and what lies in a model's directory.

Reads directories only when asked, remembers nothing. A name from outside is looked up among the directory's entries,
never joined to a path, so no name leads out of a repository.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Sequence

import structlog

from gpu_worker.engine import border
from gpu_worker.repository import configuration

CONFIGS = "configs"
NOT_UNIQUE = "model appears in two or more repositories"
NO_NAME = "the name must be one that a model's directory can have: no slash, no null, no dot at its beginning"
_VERSION = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_VERSION = 2**63 - 1
_NO_VERSION = "not a decimal number without leading zeros"
_CONFIG_NAME = re.compile(r"[^/\0]{1,200}")
_FOLDERS = {CONFIGS, "warmup", "initial_state"}

_File = tuple[str, int, int, int]
Fingerprint = tuple[_File, ...]
"""Path, size in bytes and modification time in nanoseconds of every file of a model."""

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model's directory, which exists. `config_name` names the configuration among `configs` that goes before."""

    name: str
    path: pathlib.Path
    config_name: str = ""

    def config_text(self) -> str | None:
        """The text of the configuration, None where there is none. Raises InferenceError where it cannot be read."""
        named = (f"{CONFIGS}/{self.config_name}.pbtxt",) if self.config_name else ()
        for relative in (*named, configuration.CONFIG_FILE):
            text = self._text(relative)
            if text is not None:
                return text
        return None

    def versions(self) -> dict[int, pathlib.Path]:
        """Version directories by number, ascending."""
        found: dict[int, pathlib.Path] = {}
        for entry in self.path.iterdir():
            if not entry.is_dir() or entry.name in _FOLDERS or entry.name.startswith("."):
                continue
            if _VERSION.fullmatch(entry.name) and int(entry.name) <= _MAX_VERSION:
                found[int(entry.name)] = entry
            else:
                log.warning("version.ignored", model=self.name, directory=entry.name, reason=_NO_VERSION)
        return dict(sorted(found.items()))

    def _text(self, relative: str) -> str | None:
        try:
            with (self.path / relative).open("rb") as file:
                raw = file.read(configuration.MAX_BYTES + 1)
            if len(raw) > configuration.MAX_BYTES:
                raise _invalid(f"{relative} of model '{self.name}' is larger than {configuration.MAX_BYTES} bytes")
            return raw.decode()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise _invalid(f"{relative} of model '{self.name}' cannot be read: {error}") from None

    def fingerprint(self) -> Fingerprint:
        """Changes whenever a file of the model does."""
        return tuple(sorted(self._files()))

    def files(self) -> dict[str, Fingerprint]:
        """The fingerprint by version; that of what lies beside the versions, the configurations left out, at ``""``."""
        found: dict[str, list[_File]] = {"": []}
        for file in self.fingerprint():
            first, separator, _ = file[0].partition("/")
            if separator and _VERSION.fullmatch(first):
                found.setdefault(first, []).append(file)
            elif first not in {configuration.CONFIG_FILE, CONFIGS}:
                found[""].append(file)
        return {name: tuple(files) for name, files in found.items()}

    def inside(self, relative: str) -> pathlib.Path:
        """The path of a file that must lie in this directory; raises InferenceError for any other."""
        return inside(self.path, relative)

    def _files(self) -> Iterator[_File]:
        status = self.path.stat()
        return _walk(self.path, "", frozenset({(status.st_dev, status.st_ino)}))


def _walk(folder: pathlib.Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[_File]:
    """Every file below; links are followed, but never back to one of the folders `above`.

    OSError for a pipe, a socket or a device: whoever opened it might wait for ever.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            status = _status(entry)
            if status is None:
                continue
            if stat.S_ISREG(status.st_mode):
                # A cache may give all its files one time: another file in the same place is told by its number.
                yield prefix + entry.name, status.st_size, status.st_mtime_ns, status.st_ino
            elif not stat.S_ISDIR(status.st_mode):
                raise OSError(errno.EINVAL, f"'{prefix}{entry.name}' is neither a file nor a directory")
            elif (status.st_dev, status.st_ino) not in above:
                inner = above | {(status.st_dev, status.st_ino)}
                yield from _walk(pathlib.Path(entry), f"{prefix}{entry.name}/", inner)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """None for a link that leads nowhere, or in a circle."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP}:
            return None
        raise


class Repository:
    """One or several directories of models; a name must be unique over all of them."""

    def __init__(self, roots: Sequence[pathlib.Path], config_name: str = "") -> None:
        if config_name and (config_name.startswith(".") or not _CONFIG_NAME.fullmatch(config_name)):
            raise _invalid(f"model config name '{config_name}' must be the name of a file in {CONFIGS}, without .pbtxt")
        self._config_name = config_name
        for root in roots:
            if not root.is_dir():
                raise _invalid(f"model repository '{root}' is not a directory")
        self._roots = tuple(dict.fromkeys(root.resolve() for root in roots))

    def names(self) -> list[str]:
        """Every model there is, sorted, those that are not unique included."""
        return sorted(self._places())

    def refusals(self) -> dict[str, str]:
        """Every model there is, and why it can never be loaded: empty for those that are in one repository alone."""
        return {name: NOT_UNIQUE if len(paths) > 1 else "" for name, paths in self._places().items()}

    def find(self, name: str) -> ModelDirectory:
        """The model's directory. Raises InferenceError INTERNAL where there is none, or several."""
        found = [root / name for root in self._roots if name in _names(root) and (root / name).is_dir()]
        if len(found) != 1:
            why = f": {NOT_UNIQUE}" if found else ""
            message = f"failed to load '{name}', failed to poll from model repository{why}"
            raise border.InferenceError(border.ErrorKind.INTERNAL, message)
        return ModelDirectory(name, found[0], self._config_name)

    def scan(self) -> dict[str, Fingerprint | None]:
        """What each model's directory holds now, or its places where it is not unique; None where it cannot be read."""
        return {name: _fingerprint(name, paths) for name, paths in sorted(self._places().items())}

    def _places(self) -> dict[str, list[pathlib.Path]]:
        found: dict[str, list[pathlib.Path]] = {}
        for root in self._roots:
            for path in _models(root):
                found.setdefault(path.name, []).append(path)
        return found


def _fingerprint(name: str, paths: Sequence[pathlib.Path]) -> Fingerprint | None:
    if len(paths) > 1:
        return tuple((str(path), 0, 0, 0) for path in sorted(paths))
    try:
        return ModelDirectory(name, paths[0]).fingerprint()
    except OSError:
        # A file that went while it was looked at: the next look sees what has become of it.
        return None


def is_name(name: str) -> bool:
    """Whether a directory of that name could hold a model."""
    return bool(name) and not name.startswith(".") and "/" not in name and "\0" not in name


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
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    except OSError as error:
        raise _unreadable(root, error) from None
    yield from (root / name for name in names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """One odd entry must not hide all the others."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _names(root: pathlib.Path) -> set[str]:
    """Names of what may be models; nothing is looked at, so that one is found quickly among very many."""
    try:
        with os.scandir(root) as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        raise _unreadable(root, error) from None


def _unreadable(root: pathlib.Path, error: OSError) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INTERNAL, f"model repository '{root}' cannot be read: {error}")


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)

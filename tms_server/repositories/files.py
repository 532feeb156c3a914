"""Models on a file system. Blocks.

A model's directory may be a link inside the repository's root, its files may be links inside the directory; never further,
as the sidecar that copies them trusts no link beyond either.
"""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterator

from tms_server.model import errors, source
from tms_server.repositories import listing, options


def look_up(repository: options.FileRepository, path: str, limits: options.Limits) -> listing.Listing:
    """Lists the model directory at `path` below the root. Errors as the port names them."""
    try:
        return _look_up(repository, path, limits)
    except FileNotFoundError as failure:
        raise errors.NotFound(f"uri: no model directory {path!r} in repository {repository.name!r}") from failure
    except PermissionError as failure:
        raise errors.PermissionDenied(f"uri: the server may not read {path!r} in {repository.name!r}") from failure
    except OSError as failure:
        raise errors.Unavailable(f"repository {repository.name!r} does not answer: {failure.strerror}") from failure


def _look_up(repository: options.FileRepository, path: str, limits: options.Limits) -> listing.Listing:
    try:
        root = repository.root.resolve(strict=True)
    except FileNotFoundError as failure:
        # The declared root itself is gone: a mount that is away, not a model that is not there.
        raise errors.Unavailable(f"the root of repository {repository.name!r} is not there") from failure
    directory = _inside(root, repository.root / path, "the repository")
    if not directory.is_dir():
        raise errors.InvalidField("uri", "names a file; name the model's directory")
    files = listing.bounded(_walk(directory, directory, "", limits.most_depth), limits)
    if not files:
        raise errors.NotFound(f"uri: the directory {path!r} in repository {repository.name!r} is empty")
    return listing.Listing(directory.as_uri(), files, _config(directory, files))


def _walk(model: pathlib.Path, directory: pathlib.Path, prefix: str, depth: int) -> Iterator[source.SourceFile]:
    if depth == 0:
        raise errors.InvalidField("uri", f"directories are nested too deep below {prefix!r}, or a link forms a loop")
    with os.scandir(directory) as entries:
        for entry in entries:
            path, facts = _facts(model, entry)
            if stat.S_ISDIR(facts.st_mode):
                yield from _walk(model, path, f"{prefix}{entry.name}/", depth - 1)
            elif stat.S_ISREG(facts.st_mode):
                yield source.SourceFile(
                    path=f"{prefix}{entry.name}", size_bytes=facts.st_size, version=str(facts.st_mtime_ns)
                )
            else:
                raise errors.InvalidField("uri", f"{prefix}{entry.name} is neither a file nor a directory; remove it")


def _facts(model: pathlib.Path, entry: os.DirEntry[str]) -> tuple[pathlib.Path, os.stat_result]:
    """What an entry of a real directory really is; only a link has to be followed."""
    path = pathlib.Path(entry.path)
    if not entry.is_symlink():
        return path, entry.stat(follow_symlinks=False)
    real = _inside(model, path, "the model's directory")
    return real, real.stat()


def _inside(root: pathlib.Path, path: pathlib.Path, what: str) -> pathlib.Path:
    """The real path, which must be below the root; `what` names the root."""
    try:
        real = path.resolve(strict=True)
    except RuntimeError as failure:
        raise errors.InvalidField("uri", f"the symbolic link {path.name!r} points at itself") from failure
    if not real.is_relative_to(root):
        raise errors.InvalidField("uri", f"{path.name!r} is a symbolic link that leaves {what}")
    return real


def _config(directory: pathlib.Path, files: tuple[source.SourceFile, ...]) -> bytes | None:
    for file in files:
        if file.path == listing.CONFIG:
            listing.check_config_size(file.size_bytes)
            with (directory / file.path).open("rb") as opened:
                return opened.read(listing.MOST_CONFIG_BYTES)
    return None

"""Models as the control plane resolves them. Light, for programs that are started often."""

from __future__ import annotations

import hashlib
import pathlib

from sidecar import values


def model_of(directory: pathlib.Path, name: str = "digits") -> values.Model:
    """The directory as the control plane resolves it."""
    files = []
    for path in sorted(each for each in directory.rglob("*") if each.is_file()):
        found = path.stat()
        relative = str(path.relative_to(directory))
        files.append(values.SourceFile(path=relative, size_bytes=found.st_size, version=str(found.st_mtime_ns)))
    said = "".join(f"{file.path}\0{file.size_bytes}\0{file.version}\n" for file in files)
    digest = hashlib.sha256(said.encode()).hexdigest()
    return values.Model(name=name, uri=directory.as_uri(), files=tuple(files), source_digest=digest)

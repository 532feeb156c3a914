"""Puts the files of a model from the cache into the directory that the worker serves.

Decides that a model directory is seen whole or not at all: it is built aside and renamed. Files are hard links to the
cache where both are on one file system, copies elsewhere. A `config.pbtxt` that names another model is the one file
that is rewritten: the directory carries the served name, and servers refuse a configuration that differs from it.
"""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
from collections.abc import Sequence

from google.protobuf import text_format

from protos.inference.v2 import model_config_pb2
from sidecar import errors, paths, values
from sidecar.cache import disk
from sidecar.cache import store as cache_store

# A served name begins with a letter or digit, so this is never one.
_ASIDE = ".tms-aside"
_CONFIG = "config.pbtxt"


def materialise(
    store: cache_store.Cache, repository: pathlib.Path, model: values.Model, contents: Sequence[values.SourceFile]
) -> None:
    """Makes ``<repository>/<name>/`` hold exactly the model's files. Raises ModelFailed. Blocks."""
    paths.check(model)
    aside = repository / _ASIDE / model.name
    try:
        with disk.room(model.size_bytes):
            _empty(aside)
            for file in contents:
                _place(store.blob(file.sha256), aside / file.path)
            if model.framework == "ensemble" and not any(each.is_dir() for each in aside.iterdir()):
                (aside / "1").mkdir()
            _rename_config(aside / _CONFIG, model.name)
            _swap(aside, repository / model.name)
    except OSError as error:
        raise errors.ModelFailed(
            "CacheUnusable", f"the model directory could not be made: {os.strerror(error.errno or 0)}", retryable=True
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove(repository: pathlib.Path, name: str) -> None:
    """Takes the model's directory away; one that is not there is fine. Blocks."""
    if paths.is_name(name):
        shutil.rmtree(repository / name, ignore_errors=True)


def _empty(directory: pathlib.Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _place(blob: pathlib.Path, target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(blob, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK}:
            raise
        shutil.copyfile(blob, target)


def _rename_config(config: pathlib.Path, name: str) -> None:
    if not config.is_file():
        return
    try:
        parsed = text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError):
        # The server says better what is wrong with it.
        return
    if parsed.name not in {"", name}:
        parsed.name = name
        config.unlink()
        config.write_text(text_format.MessageToString(parsed), encoding="utf-8")


def _swap(built: pathlib.Path, target: pathlib.Path) -> None:
    """The worker holds nothing of the old directory: a name is unloaded before it is made anew."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.exists():
        old = built.with_name(f"{built.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        built.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        return
    built.rename(target)

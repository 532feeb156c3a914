"""Clears away what a crash left behind.

Decides which partial files can be gone on with: those with a journal of this boot, and those whose fetch runs now. All
functions are for who holds the lock that their file is written under.
"""

from __future__ import annotations

import contextlib
import pathlib

from sidecar import clock
from sidecar.cache import disk, layout, locks, pins, reserve
from sidecar.cache import partial as partial_file

_ABANDONED_S = 86400.0
_UNNAMED_S = 3600.0


def sweep(where: layout.Layout) -> None:
    """Only under the budget's lock."""
    pins.living(where.pins())
    reserve.promised(where)
    _sweep_partials(where)
    _sweep_asides(where)
    _sweep_known(where)
    _sweep_unpacked(where)


def remove_partial(partial: pathlib.Path) -> None:
    """A file under way and its journals."""
    partial.unlink(missing_ok=True)
    partial.with_name(f"{partial.name}.{partial_file.boot_id()}").unlink(missing_ok=True)


def _sweep_partials(where: layout.Layout) -> None:
    now_s, boot = clock.now_ms() / 1000, partial_file.boot_id()
    here = dict(disk.scan(where.root / "partial"))
    for name, found in here.items():
        base, _dot, kind = name.partition(".")
        if locks.is_held(where.lock(base)):
            continue
        idle_s = now_s - found.st_mtime
        if kind.endswith(".member"):
            gone = idle_s > _UNNAMED_S
        else:
            # A file and its journal belong together.
            gone = idle_s > _ABANDONED_S or (kind or boot) != boot or not {base, f"{base}.{boot}"} <= here.keys()
        if gone:
            where.partial(name).unlink(missing_ok=True)


def _sweep_asides(where: layout.Layout) -> None:
    """Names that were written beside their place, by somebody who died before the rename."""
    now_s = clock.now_ms() / 1000
    for directory in ("known", "unpacked"):
        for name, found in disk.scan(where.root / directory):
            if "." in name and now_s - found.st_mtime > _UNNAMED_S:
                (where.root / directory / name).unlink(missing_ok=True)


def _sweep_known(where: layout.Layout) -> None:
    """What was learnt of bytes that are not here any more; and what earlier versions wrote as files."""
    for name, _found in disk.scan(where.root / "known"):
        if "." in name:
            continue
        link = where.known(name)
        sha256 = ""
        with contextlib.suppress(OSError):
            sha256 = layout.unpacked(str(link.readlink()))
        if not sha256 or not (where.blob(sha256).is_file() or where.unpacked(sha256).is_file()):
            link.unlink(missing_ok=True)


def _sweep_unpacked(where: layout.Layout) -> None:
    """Lists of archives some of whose files are gone."""
    for name, _found in disk.scan(where.root / "unpacked"):
        if "." in name:
            continue
        lines = where.unpacked(name).read_text(encoding="utf-8").splitlines()
        if not all(where.blob(line.partition(" ")[0]).is_file() for line in lines):
            where.unpacked(name).unlink(missing_ok=True)

"""A file that is being fetched: its bytes, put where they belong, and a journal of those that are here.

Decides what a later fetch need not ask for again. Written pages survive a crash of this process but not of the machine,
so that a journal counts within one boot only. Must never count bytes as here before they are written.
"""

from __future__ import annotations

import os
import pathlib
import threading

from sidecar import spans
from sidecar.cache import disk

JOURNALLED_BYTES = 4 << 20


class Partial:
    """One file under way; safe in threads. Files too small to be worth it have no journal and begin anew."""

    def __init__(self, path: pathlib.Path, size_bytes: int) -> None:
        """Opens or makes it with all its blocks taken. Raises OSError, with ENOSPC and the like on a full disk."""
        self.path = path
        self.size_bytes = size_bytes
        self._lock = threading.Lock()
        self._log = -1
        self._journal = path.with_name(f"{path.name}.{boot_id()}") if size_bytes >= JOURNALLED_BYTES else None
        self.descriptor = _open(path)
        try:
            self._here = self._recovered()
            if not self._here:
                self._begin()
            if self._journal:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._log = os.open(self._journal, flags, 0o600)
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        for descriptor in (self.descriptor, self._log):
            if descriptor >= 0:
                os.close(descriptor)

    def here(self) -> list[spans.Span]:
        """What need not be fetched, in order."""
        with self._lock:
            return list(self._here)

    def note(self, span: spans.Span) -> None:
        """These bytes are written."""
        if span.size_bytes:
            with self._lock:
                self._here = spans.merged([*self._here, span])
                if self._log >= 0:
                    os.write(self._log, f"{span.start} {span.end}\n".encode())

    def restart(self) -> None:
        """Nothing of what came counts."""
        with self._lock:
            self._here = []
            if self._log >= 0:
                os.ftruncate(self._log, 0)

    def _begin(self) -> None:
        if self._journal:
            self._journal.unlink(missing_ok=True)
        os.ftruncate(self.descriptor, 0)
        disk.reserve(self.descriptor, self.size_bytes)

    def _recovered(self) -> list[spans.Span]:
        if self._journal is None or os.fstat(self.descriptor).st_size != self.size_bytes:
            return []
        try:
            lines = self._journal.read_text(encoding="ascii").splitlines(keepends=True)
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        # A last line that was cut says nothing; nor does one that leads outside of the file.
        noted = (_span(line) for line in lines)
        return spans.merged(each for each in noted if each and 0 <= each.start < each.end <= self.size_bytes)


def _open(path: pathlib.Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError:
        # Whoever was to commit it died after it had become read-only.
        path.unlink()
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def boot_id() -> str:
    """Another one after each start of the machine."""
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _span(line: str) -> spans.Span | None:
    start, _space, end = line.removesuffix("\n").partition(" ")
    return spans.Span(int(start), int(end)) if line.endswith("\n") and start.isdigit() and end.isdigit() else None

"""Where everything of the cache lies.

::

    <root>/blobs/<sha256>        whole files, read-only; their mtime is fixed, so that a write to one is noticed; their
                                 atime is the last time that a model asked for them
    <root>/known/<identity>      a link whose text is the sha256 that was learnt for (uri, path, size, version)
    <root>/partial/<identity>    a fetch under way; ``.<boot id>`` beside it is its journal of finished spans
    <root>/unpacked/<sha256>     what an archive of these bytes held: a path, a size and a sha256 on each line
    <root>/locks/<identity>      held by who fetches, in this process or another
    <root>/slots/<place>.<n>     held while bytes come from a place, so that a node asks no store for too much at once
    <root>/pins/<owner>          what a living sidecar needs: an identity or a sha256 on each line
    <root>/reserved/<owner>      bytes that a fetch under way has still to put on the disk
    <root>/budget                held while room is counted, given or made

Decides names only. The text of a learnt sha256 is packed into 43 letters, which file systems keep in the link's inode,
so that ten thousand small files cost no further blocks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import pathlib

from sidecar import values

BLOB_TIME_NS = 1_000_000_000 * 10**9
DIRECTORIES = ("blobs", "known", "partial", "unpacked", "locks", "slots", "pins", "reserved")


class Layout:
    """Paths below one root. Makes the directories."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        for name in DIRECTORIES:
            (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def blob(self, sha256: str) -> pathlib.Path:
        return self.root / "blobs" / sha256

    def known(self, name: str) -> pathlib.Path:
        return self.root / "known" / name

    def partial(self, name: str) -> pathlib.Path:
        return self.root / "partial" / name

    def unpacked(self, sha256: str) -> pathlib.Path:
        return self.root / "unpacked" / sha256

    def lock(self, name: str) -> pathlib.Path:
        return self.root / "locks" / name

    def slot(self, place: str, number: int) -> pathlib.Path:
        return self.root / "slots" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.{number}"

    def pins(self) -> pathlib.Path:
        return self.root / "pins"

    def reserved(self) -> pathlib.Path:
        return self.root / "reserved"

    def budget(self) -> pathlib.Path:
        return self.root / "budget"


def identity(uri: str, file: values.SourceFile) -> str:
    """Which bytes are meant, before their sha256 is known."""
    said = "\0".join((uri, file.path, str(file.size_bytes), file.version))
    return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()


def digest(path: pathlib.Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sha256(word: str) -> bool:
    return len(word) == 64 and all(letter in "0123456789abcdef" for letter in word)


def packed(sha256: str) -> str:
    """The 64 hexadecimal digits in 43 letters."""
    return base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode().rstrip("=")


def unpacked(text: str) -> str:
    """What `packed` made; empty for anything else."""
    try:
        return base64.b64decode(f"{text}=", altchars=b"-_", validate=True).hex()
    except (binascii.Error, ValueError):
        return ""

"""What targets are fed: their seeds, what was found and kept, and mutations of both that are the same in every run."""

from __future__ import annotations

import pathlib
import random  # noqa: TID251 - the same numbers in every run
import types
from collections.abc import Iterator, Sequence

from tests.fuzz.targets import (
    configurations,
    grpc_messages,
    header_blocks,
    http1_requests,
    http2_frames,
    infer_bodies,
    shared_regions,
)

CORPUS = pathlib.Path(__file__).parent / "corpus"
TARGETS: dict[str, types.ModuleType] = {
    module.NAME: module
    for module in (
        http2_frames,
        header_blocks,
        grpc_messages,
        http1_requests,
        infer_bodies,
        configurations,
        shared_regions,
    )
}
LONGEST = 2048
_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x0D, 0x20, 0x22, 0x3A, 0x5B, 0x7B)


def known(name: str) -> list[bytes]:
    """Seeds, and what coverage-guided runs found worth keeping."""
    folder = CORPUS / name
    kept = sorted(folder.iterdir()) if folder.is_dir() else []
    return [*TARGETS[name].seeds(), *(path.read_bytes() for path in kept)]


def mutations(name: str, count: int) -> Iterator[bytes]:
    """So many inputs that are near the known ones."""
    chance = random.Random(name)
    inputs = known(name)
    for _ in range(count):
        data = bytearray(chance.choice(inputs))
        for _ in range(chance.choice((1, 1, 2, 3, 6))):
            _mutate(data, chance, inputs)
        yield bytes(data[:LONGEST])


def _mutate(data: bytearray, chance: random.Random, inputs: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 9, 40)))
    kind = chance.randrange(7)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = chance.choice(_BYTES)
    elif kind == 2:
        del data[at:end]
    elif kind == 3:
        data[at:at] = data[at:end]
    elif kind == 4:
        data[at:at] = bytes(chance.choice(_BYTES) for _ in range(chance.choice((1, 2, 4))))
    elif kind == 5:
        other = chance.choice(inputs)
        start = chance.randrange(len(other) + 1)
        data[at:end] = other[start : start + chance.choice((1, 4, 16, 64))]
    elif at < len(data):
        data[at] = (data[at] + chance.choice((-1, 1))) % 256

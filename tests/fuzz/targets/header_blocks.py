"""HPACK blocks of one connection: what is read is what another implementation reads."""

from __future__ import annotations

import hpack as oracle
from hpack import exceptions as oracle_exceptions

from gpu_worker.http2 import codes, hpack

NAME = "hpack"
_LIST_BYTES = 2**20
# Where this decoder is stricter than the other: numbers beyond what any block can mean, and a third size update.
_STRICTER = ("too large", "size updates", "table size update")


def fuzz(data: bytes) -> None:
    """Blocks of at most 255 bytes, each behind its length."""
    made, other = hpack.Decoder(4096, _LIST_BYTES, 10**6), oracle.Decoder(max_header_list_size=_LIST_BYTES)
    other.max_allowed_table_size = 4096
    at = 0
    while at < len(data):
        block = data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
        if not _agreed(made, other, block):
            return


def _agreed(made: hpack.Decoder, other: oracle.Decoder, block: bytes) -> bool:
    """Whether both read the block; they read the same, or both refuse."""
    reason = ""
    try:
        want = [tuple(field) for field in other.decode(block, raw=True)]
    except oracle_exceptions.HPACKError as error:
        want = None
        reason = repr(error)
    try:
        found = made.decode(block)
    except codes.ConnectionFault as fault:
        assert fault.code is codes.Code.COMPRESSION_ERROR
        assert want is None or any(words in fault.words for words in _STRICTER), (block, fault.words, want)
        return False
    except hpack.Oversized:
        assert want is None, (block, want)
        return False
    assert want is not None, (block, found, reason)
    assert list(found) == want, (block, found, want)
    return True


def seeds() -> list[bytes]:
    encoder = oracle.Encoder()
    fields = [(":method", "POST"), (":path", "/a"), ("a", "b" * 30), ("grpc-timeout", "1S")]
    blocks = [encoder.encode(fields, huffman=huffman) for huffman in (True, False, True)]
    encoder.header_table_size = 64
    blocks.append(encoder.encode(fields))
    edges = [
        b"\x3f\xe1\x1f\x82",
        b"\x20\x3f\xe1\x1f",
        b"\x7f\x00\x01a",
        b"\x00\x81\x1f\x00",
        b"\x40\x01a\x7f\x00",
        b"\xff\x00",
    ]
    return [b"".join(bytes([len(each)]) + each for each in blocks), *(bytes([len(each)]) + each for each in edges)]

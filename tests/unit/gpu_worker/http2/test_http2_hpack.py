"""HPACK against the examples' rules and an independent implementation."""

from __future__ import annotations

import hpack as oracle
import pytest
from hpack import exceptions as oracle_exceptions
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.http2 import codes, hpack, huffman, static_table

OTHER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
names = st.sampled_from([b":path", b"grpc-timeout", b"x-request-id", b"te", b"a", b"b-bin"]) | st.binary(
    min_size=1, max_size=20
)
fields = st.tuples(names, st.binary(max_size=40))
blocks = st.lists(st.lists(fields, max_size=12), max_size=8)


def decoder(table_bytes: int = 4096, list_bytes: int = 2**20, most_fields: int = 1000) -> hpack.Decoder:
    return hpack.Decoder(table_bytes, list_bytes, most_fields)


def refusal(made: hpack.Decoder, block: bytes) -> str:
    with pytest.raises(codes.ConnectionFault) as caught:
        made.decode(block)
    assert caught.value.code is codes.Code.COMPRESSION_ERROR
    return caught.value.words


def test_the_static_table_is_the_oracles() -> None:
    assert oracle.table.HeaderTable.STATIC_TABLE == static_table.FIELDS


@given(st.binary(max_size=200))
def test_huffman_strings_are_decoded(text: bytes) -> None:
    assert huffman.decode(OTHER.encode(text)) == text


@given(st.binary(min_size=1, max_size=24))
def test_huffman_strings_are_accepted_only_in_their_one_form(data: bytes) -> None:
    try:
        text = huffman.decode(data)
    except ValueError:
        return
    assert OTHER.encode(text) == data


@pytest.mark.parametrize(
    "data",
    [
        b"\x1f\xff",  # "a", then more than 7 bits of padding
        b"\x18",  # "a", then padding that is not all ones
        b"\xff\xff\xff\xff",  # EOS and its like
        b"\xff\xff\xff\xfc",
    ],
)
def test_bad_huffman_padding_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="padded wrongly"):
        huffman.decode(data)


@given(blocks, st.lists(st.sampled_from([0, 64, 300, 4096]), min_size=8, max_size=8), st.booleans())
def test_what_another_encoder_writes_is_read(
    given_blocks: list[list[hpack.Field]],
    sizes: list[int],
    use_huffman: bool,  # noqa: FBT001
) -> None:
    encoder, made = oracle.Encoder(), decoder()
    for each, size in zip(given_blocks, sizes, strict=False):
        encoder.header_table_size = size
        for _ in range(2):
            assert made.decode(encoder.encode(each, huffman=use_huffman)) == tuple(each)


@given(blocks)
def test_what_this_encoder_writes_is_read_elsewhere_and_leaves_tables_alone(
    given_blocks: list[list[hpack.Field]],
) -> None:
    other = oracle.Decoder(max_header_list_size=2**20)
    other.max_allowed_table_size = 4096
    other.decode(hpack.NO_TABLE)
    for each in given_blocks:
        found = other.decode(hpack.encode(tuple(each)), raw=True)
        assert [tuple(field) for field in found] == each
    assert other.header_table_size == 0
    assert not other.header_table.dynamic_entries


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_read_as_elsewhere_or_refused(data: list[bytes]) -> None:
    made, other = decoder(), oracle.Decoder(max_header_list_size=2**20)
    for block in data:
        try:
            found = made.decode(block)
        except codes.ConnectionFault:
            return
        try:
            expected = other.decode(block, raw=True)
        except (oracle_exceptions.HPACKError, UnicodeDecodeError):
            return
        assert list(found) == [tuple(field) for field in expected]


def literal(name: bytes, value: bytes) -> bytes:
    """With incremental indexing."""
    return b"\x40" + bytes((len(name),)) + name + bytes((len(value),)) + value


def test_indexes_name_entries_newest_first_and_old_ones_go() -> None:
    made = decoder(table_bytes=4096)
    made.decode(b"\x3f\x29")  # room for 72 bytes: two small entries
    made.decode(literal(b"a", b"1") + literal(b"b", b"2"))
    assert made.decode(b"\xbe\xbf") == ((b"b", b"2"), (b"a", b"1"))
    made.decode(literal(b"c", b"3"))
    assert made.decode(b"\xbe\xbf") == ((b"c", b"3"), (b"b", b"2"))
    assert "index 64" in refusal(made, b"\xc0")


def test_an_entry_larger_than_the_table_empties_it() -> None:
    made = decoder()
    made.decode(b"\x3f\x29" + literal(b"a", b"1"))
    assert made.decode(literal(b"n", b"v" * 100))[0] == (b"n", b"v" * 100)
    assert "index 62" in refusal(made, b"\xbe")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (b"\x80", "index 0"),
        (b"\xff\x80\x80\x80\x80\x80\x01", "too large"),
        (b"\xff\xff\xff\xff\xff\x7f", "too large"),
        (b"\x3f\xe2\x1f", "above the bound"),  # 4097
        (b"\x20\x20\x20", "too many of them"),
        (b"\x82\x20", "after a field"),
        (b"\x40\x05ab", "longer than its block"),
        (b"\x40\x81\xff\x00", "padded wrongly"),
        (b"\x40", "range"),
        (b"\xff", "range"),
        (b"\x7f\x80", "range"),
    ],
)
def test_broken_blocks_are_refused(block: bytes, words: str) -> None:
    assert words in refusal(decoder(), block)


def test_a_smaller_bound_holds_once_acknowledged_and_must_be_followed() -> None:
    made = decoder(table_bytes=100)
    made.decode(b"\x3f\xe1\x1f" + literal(b"a", b"1"))  # 4096 are still allowed
    made.acknowledged()
    assert "is missing" in refusal(made, b"\x82")
    made = decoder(table_bytes=100)
    made.acknowledged()
    assert "above the bound" in refusal(made, b"\x3f\xe1\x1f")
    made = decoder(table_bytes=100)
    made.acknowledged()
    assert made.decode(b"\x3f\x45" + b"\x82") == ((b":method", b"GET"),)


@pytest.mark.parametrize(("list_bytes", "most_fields"), [(40, 100), (2**20, 0)])
def test_more_than_the_bounds_is_told_and_the_table_goes_on(list_bytes: int, most_fields: int) -> None:
    made = decoder(list_bytes=list_bytes, most_fields=most_fields)
    with pytest.raises(hpack.Oversized):
        made.decode(b"\x82" + literal(b"a", b"1"))
    made = decoder(list_bytes=80, most_fields=2)
    with pytest.raises(hpack.Oversized):
        made.decode(b"\x82" * 3 + literal(b"a", b"1"))
    assert made.decode(b"\xbe") == ((b"a", b"1"),)


def test_blocks_are_remembered_while_they_mean_the_same() -> None:
    made = decoder()
    indexed = b"\x82\x86"
    made.decode(indexed)
    made.remember(indexed, "made")
    assert made.blocks == {indexed: "made"}
    adding = literal(b"a", b"1")
    made.decode(adding)
    made.remember(adding, "never")
    assert made.blocks == {}
    made.decode(b"\xbe")
    made.remember(b"\xbe", "entry")
    made.decode(b"\x20")
    assert made.blocks == {}


def test_what_is_remembered_is_bounded() -> None:
    made = decoder()
    for index in range(1000):
        block = hpack.encode(((b"n", b"%d" % index),))
        made.decode(block)
        made.remember(block, index)
    assert len(made.blocks) <= 64
    long = hpack.encode(((b"n", b"v" * 2000),))
    made.decode(long)
    made.remember(long, "never")
    assert long not in made.blocks

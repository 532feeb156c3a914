"""HPACK: header blocks to fields and back (RFC 7541). Pure.

The decoder keeps what it made of whole blocks for as long as its dynamic table says the same; and of blocks that begin
with the same fields from the tables, what these are, whichever indices they have got by then. The encoder uses no
dynamic table, and tells so in the first block of a connection, so that a block once made serves all connections. Must
never hold more than its bounds, whatever a block promises.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from gpu_worker.http2 import codes, huffman, static_table

Field = static_table.Field

NO_TABLE = b"\x20"
"""What the first block of a connection begins with: this encoder's table has no room."""

_STATIC = static_table.FIELDS
_STATIC_COUNT = len(_STATIC)
_BY_FIELD = {field: index for index, field in reversed(tuple(enumerate(_STATIC, 1)))}
_BY_NAME = {name: index for index, (name, _) in reversed(tuple(enumerate(_STATIC, 1)))}
_ENTRY_BYTES = 32
# Of every table until somebody says otherwise (RFC 9113 section 6.5.2).
_FIRST_TABLE_BYTES = 4096
_Entry = tuple[Field, int, bool]
Check = Callable[[bytes, bytes], bool]
# By index; none has 0.
_STATIC_ENTRIES: tuple[_Entry, ...] = tuple(
    (field, len(field[0]) + len(field[1]) + _ENTRY_BYTES, True) for field in _STATIC
)
_MAX_INTEGER = 2**28
_MAX_SHIFT = 28
# Fields that are in a table, each of one byte; fewer than this are read as fast one by one.
_RUN = re.compile(rb"[\x81-\xfe]{4,}").match
# What the bytes of a run become when a field is added to the dynamic table.
_SHIFTED = bytes(byte + 1 if 0x80 | _STATIC_COUNT < byte < 0xFF else byte for byte in range(256))
_MOST_ONE_BYTE = 0x7E
# Of the blocks that begin otherwise, where clients send several kinds in turn: one in so many is looked at.
_LEARNED = 2
_BLOCKS = 64
_BLOCK_BYTES = 2**10


def _anything(_name: bytes, _value: bytes) -> bool:
    return True


class Oversized(Exception):
    """The fields are more than the bound; the table is as the block left it, so that the connection can go on."""


class Decoder:
    """Of one connection. `blocks` is for what was made of whole blocks; it is emptied where the table changes.

    The first `shared` fields of the last block are those that other blocks began with too, 0 where they are none;
    `made` is for what was made of these fields alone, and None again for others.

    `check` says whether a field may be in a request; `bad` whether one of the last block may not, be it literal or
    from the table.
    """

    def __init__(self, table_bytes: int, list_bytes: int, most_fields: int, check: Check = _anything) -> None:
        self.blocks: dict[bytes, Any] = {}
        self.bad = False
        self._table: list[_Entry] = []
        self._used_bytes = 0
        self._told_bytes = table_bytes
        self._most_bytes = max(table_bytes, _FIRST_TABLE_BYTES)
        self._room_bytes = _FIRST_TABLE_BYTES
        self._update_due = False
        self._list_bytes = list_bytes
        self._most_fields = most_fields
        self._check = check
        self._changed = False
        self.shared = 0
        self.made: Any = None
        self._run = b""
        self._run_fields: tuple[Field, ...] = ()
        self._run_bytes = 0
        self._run_top = 0
        self._misses = 0
        self._inserted = 0

    def acknowledged(self) -> None:
        """The client has read the bound: from now on it holds, and a larger table must be given up (section 4.2)."""
        self._most_bytes = self._told_bytes
        self._update_due = self._room_bytes > self._most_bytes

    def remember(self, block: bytes, made: Any) -> None:
        """Keeps what was made of `block`, unless decoding it again would give something else."""
        if self._changed or len(block) > _BLOCK_BYTES:
            return
        if len(self.blocks) >= _BLOCKS:
            self.blocks.clear()
        self.blocks[block] = made

    def decode(self, block: bytes) -> tuple[Field, ...]:
        """The fields of a block. ConnectionFault COMPRESSION_ERROR for a broken one; Oversized for too much."""
        try:
            return self._decode(block)
        except (IndexError, ValueError) as error:
            raise codes.ConnectionFault(codes.Code.COMPRESSION_ERROR, f"header block: {error}") from error

    def _decode(self, block: bytes) -> tuple[Field, ...]:
        self._changed = self.bad = False
        fields: list[Field] = []
        end, room = len(block), self._list_bytes
        table, inserted = self._table, self._inserted
        if self._run and not self._update_due and block.startswith(self._run):
            fields += self._run_fields
            room -= self._run_bytes
            self.shared = at = len(self._run)
        else:
            self.shared = 0
            at = self._updates(block) if self._update_due or (block and block[0] & 0xE0 == 0x20) else 0
        while at < end:
            byte = block[at]
            if byte & 0x80:
                at += 1
                index = byte & 0x7F
                if index == 0x7F:
                    index, at = _integer(block, at, index)
                if index > _STATIC_COUNT and index - _STATIC_COUNT <= len(table):
                    field, size, good = table[_STATIC_COUNT - index]
                else:
                    field, size, good = self._entry(index)
                if not good:
                    self.bad = True
            else:
                field, size, at = self._literal(block, at, byte)
            room -= size
            fields.append(field)
            if room < 0:
                # The rest is read for the table's sake only.
                fields.clear()
        if room < 0 or len(fields) > self._most_fields:
            raise Oversized
        if not self.shared:
            self._learn(block, fields, self._inserted - inserted)
        return tuple(fields)

    def _learn(self, block: bytes, fields: list[Field], inserted: int) -> None:
        """Takes the fields from tables that `block` begins with for those of the next, `inserted` fields later."""
        self._misses += 1
        found = None if self.bad or self._misses % _LEARNED else _RUN(block)
        if found is None:
            return
        self._forget_run()
        count = found.end()
        dynamic = [byte & 0x7F for byte in found[0] if byte & 0x7F > _STATIC_COUNT]
        top = max(dynamic) + inserted if dynamic else 0
        if top > min(_MOST_ONE_BYTE, _STATIC_COUNT + len(self._table)):
            return
        self._run = found[0]
        for _ in range(inserted):
            self._run = self._run.translate(_SHIFTED)
        self._run_fields = tuple(fields[:count])
        self._run_bytes = sum(len(name) + len(value) + _ENTRY_BYTES for name, value in self._run_fields)
        self._run_top = top

    def _forget_run(self) -> None:
        self._run, self.made = b"", None

    def _updates(self, block: bytes) -> int:
        """Takes the size updates at the start, at most two (section 4.2); returns where the fields begin."""
        at = count = 0
        while at < len(block) and block[at] & 0xE0 == 0x20:
            count += 1
            size = block[at] & 0x1F
            at += 1
            if size == 0x1F:
                size, at = _integer(block, at, size)
            if size > self._most_bytes or count > 2:
                raise ValueError("a table size update above the bound, or too many of them")
            self._room_bytes, self._update_due = size, False
            self._changed = True
            self.blocks.clear()
            self._forget_run()
            self._evict(size)
        if self._update_due and block:
            raise ValueError("the table size update that the smaller bound asks for is missing")
        return at

    def _entry(self, index: int) -> _Entry:
        if 0 < index <= _STATIC_COUNT:
            return _STATIC_ENTRIES[index - 1]
        place = index - _STATIC_COUNT
        if not 0 < place <= len(self._table):
            raise ValueError(f"index {index} is not in the table")
        return self._table[-place]

    def _literal(self, block: bytes, at: int, byte: int) -> tuple[Field, int, int]:
        """A field that is spelled out, its size, and where it ends (section 6.2)."""
        if byte & 0x40:
            mask = 0x3F
        elif byte & 0x20:
            raise ValueError("a table size update after a field")
        else:
            mask = 0x0F
        index = byte & mask
        at += 1
        if index == mask:
            index, at = _integer(block, at, index)
        if index:
            name = self._entry(index)[0][0]
        else:
            name, at = _string(block, at)
        # _string's work without a call: almost every literal has a short value.
        first = block[at]
        end = at + 1 + (first & 0x7F)
        if first & 0x7F == 0x7F or end > len(block):
            value, end = _string(block, at)
        elif first & 0x80:
            value = huffman.decode(block[at + 1 : end])
        else:
            value = block[at + 1 : end]
        good = self._check(name, value)
        field = name, value
        size = len(name) + len(value) + _ENTRY_BYTES
        if not good:
            self.bad = True
        if byte & 0x40:
            self._insert((field, size, good))
        return field, size, end

    def _insert(self, entry: _Entry) -> None:
        size = entry[1]
        self._changed = True
        self._inserted += 1
        if self.blocks:
            self.blocks.clear()
        used, room, table = self._used_bytes + size, self._room_bytes, self._table
        while used > room and table:
            used -= table[0][1]
            del table[0]
        if used <= room:
            table.append(entry)
            self._used_bytes = used
        else:
            self._used_bytes = 0
        if self._run_top and self._run:
            # Each field of the table has moved by one, and the oldest may be there no more.
            self._run_top = top = self._run_top + 1
            if top > _MOST_ONE_BYTE or top > _STATIC_COUNT + len(table):
                self._forget_run()
            else:
                self._run = self._run.translate(_SHIFTED)

    def _evict(self, most_bytes: int) -> None:
        """Drops the oldest entries until no more than so many bytes are used (section 4.3)."""
        table = self._table
        while self._used_bytes > most_bytes:
            self._used_bytes -= table[0][1]
            del table[0]


@functools.lru_cache(maxsize=256)
def encode(fields: tuple[Field, ...]) -> bytes:
    """A block that leaves every table as it is: indexed where the static table has the field, literal otherwise."""
    return b"".join(map(_encoded, fields))


def _encoded(field: Field) -> bytes:
    index = _BY_FIELD.get(field)
    if index:
        return _number(index, 0x7F, 0x80)
    name, value = field
    index = _BY_NAME.get(name, 0)
    head = _number(index, 0x0F, 0) if index else b"\x00" + _number(len(name), 0x7F, 0) + name
    return head + _number(len(value), 0x7F, 0) + value


def _number(value: int, mask: int, pattern: int) -> bytes:
    """Section 5.1."""
    if value < mask:
        return bytes((pattern | value,))
    digits = bytearray((pattern | mask,))
    value -= mask
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _integer(block: bytes, at: int, value: int) -> tuple[int, int]:
    """The rest of a number whose prefix is full, and where it ends (section 5.1)."""
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if value > _MAX_INTEGER or shift > _MAX_SHIFT:
            raise ValueError("a number is too large")
        if byte < 0x80:
            return value, at
        shift += 7


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string literal and where it ends (section 5.2)."""
    first = block[at]
    length = first & 0x7F
    at += 1
    if length == 0x7F:
        length, at = _integer(block, at, length)
    end = at + length
    if end > len(block):
        raise ValueError("a string is longer than its block")
    raw = block[at:end]
    return (huffman.decode(raw) if first & 0x80 else raw), end

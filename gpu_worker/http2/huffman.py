"""The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B), decoded a byte at a time. Pure.

Must never accept what the RFC refuses: padding of 8 bits or more, padding that is not the start of EOS, EOS itself.
"""

from __future__ import annotations

# The code is canonical, so its lengths say all: symbol by symbol, EOS last, `a` for 5 bits to `z` for 30.
_LENGTHS = (
    "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhfibccccccccccccccccccccccdcdioijbkaba"
    "babbbaccbbbabcbaabccccckgjixprpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrsvvporsru"
    "vvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwvz"
)
_EOS = 256
_Row = list[tuple[int, bytes]]


def decode(data: bytes) -> bytes:
    """The decoded string; ValueError for what is no Huffman-coded string."""
    pieces = []
    state = 0
    for byte in data:
        row = _ROWS[state] or _row(state)
        state, piece = row[byte]
        pieces.append(piece)
    if state not in _ENDS:
        raise ValueError("a Huffman-coded string ends in the middle of a symbol, holds EOS, or is padded wrongly")
    return b"".join(pieces)


def _tree() -> list[list[int]]:
    """Nodes as pairs of what follows a 0 and a 1: another node's index, or a symbol as ~symbol."""
    nodes = [[0, 0]]
    code, length = 0, 0
    for symbol in sorted(range(len(_LENGTHS)), key=lambda each: (_LENGTHS[each], each)):
        bits = ord(_LENGTHS[symbol]) - ord("a") + 5
        code <<= bits - length
        length = bits
        _plant(nodes, f"{code:0{bits}b}", symbol)
        code += 1
    return nodes


def _plant(nodes: list[list[int]], path: str, symbol: int) -> None:
    at = 0
    for bit in map(int, path[:-1]):
        if not nodes[at][bit]:
            nodes.append([0, 0])
            nodes[at][bit] = len(nodes) - 1
        at = nodes[at][bit]
    nodes[at][int(path[-1])] = ~symbol


def _ends(nodes: list[list[int]]) -> frozenset[int]:
    """States that a string may end in: the root, and up to 7 bits of EOS, which is all ones."""
    ends, at = [0], 0
    for _ in range(7):
        at = nodes[at][1]
        ends.append(at)
    return frozenset(ends)


_NODES = _tree()
_ENDS = _ends(_NODES)
# What comes after EOS: nothing leads out of it.
_DEAD = len(_NODES)
# By state and byte: the next state, and the symbols that came out. Rows are made when first used: most never are.
_ROWS: list[_Row | None] = [None] * (_DEAD + 1)
_ROWS[_DEAD] = [(_DEAD, b"")] * 256


def _row(state: int) -> _Row:
    row = [_step(state, byte) for byte in range(256)]
    _ROWS[state] = row
    return row


def _step(state: int, byte: int) -> tuple[int, bytes]:
    symbols = bytearray()
    for shift in range(7, -1, -1):
        follows = _NODES[state][byte >> shift & 1]
        if follows == ~_EOS:
            return _DEAD, b""
        if follows < 0:
            symbols.append(~follows)
        state = max(follows, 0)
    return state, bytes(symbols)

"""Blocks: none is lent twice, each comes back when its last view is gone, and pages go back to the system."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpu_worker.ipc import arena, memory
from gpu_worker.ipc.malformed import MalformedError

SMALL = memory.Sizes(ring_bytes=4096, handles=4096, arena_bytes=64 * 1024)
LARGE = memory.Sizes(ring_bytes=4096, handles=4096, arena_bytes=256 * 2**20)


def areas(sizes: memory.Sizes) -> tuple[memory.Area, memory.Area, int]:
    """The two sides' mappings of one area, and its descriptor."""
    fd = memory.create("tms-test", sizes)
    return memory.Area(fd, sizes), memory.Area(fd, sizes), fd


class Lending(RuleBasedStateMachine):
    """Loans of any sizes that end in any order."""

    @initialize()
    def begin(self) -> None:
        self.mine, self.theirs, fd = areas(SMALL)
        os.close(fd)
        self.lender = arena.Lender(self.mine)
        self.borrower = arena.Borrower(self.theirs)
        self.out: dict[int, tuple[int, bytes, list[Any]]] = {}
        self.number = 0

    @rule(size=st.integers(1, 20_000))
    def lend(self, size: int) -> None:
        block = self.lender.lend(size)
        if block is None:
            # Refused only where first fit finds no gap: less than all is free in one piece.
            assert self.out
            return
        handle, offset = block
        assert handle not in self.out
        self.number += 1
        content = bytes([self.number % 256]) * size
        self.mine.arena[offset : offset + size] = content
        self.out[handle] = offset, content, [self.borrower.borrow(handle, offset, size)]

    @rule(data=st.data())
    @precondition(lambda self: self.out)
    def derive(self, data: st.DataObject) -> None:
        """A slice or an array of a view keeps the block as the view does."""
        _, content, views = self.out[data.draw(st.sampled_from(sorted(self.out)))]
        whole = next((view for view in views if len(view) == len(content)), None)
        if whole is not None:
            views.append(whole[1:] if data.draw(st.booleans()) else np.frombuffer(whole, np.uint8)[1:])

    @rule(data=st.data())
    @precondition(lambda self: self.out)
    def give_back(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(sorted(self.out)))
        views = self.out[handle][2]
        views.pop(data.draw(st.integers(0, len(views) - 1)))
        if not views:
            del self.out[handle]

    @invariant()
    def what_is_lent_is_as_it_was_written(self) -> None:
        for _, content, views in getattr(self, "out", {}).values():
            for view in views:
                assert bytes(view) == content[-len(view) :] if len(view) else True

    @invariant()
    def nothing_is_lent_twice(self) -> None:
        spans = sorted((offset, offset + len(content)) for offset, content, _ in getattr(self, "out", {}).values())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))

    @invariant()
    def the_borrower_holds_what_is_out(self) -> None:
        if hasattr(self, "borrower"):
            assert self.borrower.count == len(self.out)

    def teardown(self) -> None:
        if not hasattr(self, "lender"):
            return
        self.out.clear()
        block = self.lender.lend(SMALL.arena_bytes)
        assert block is not None, "all came back, in one piece"
        assert block[1] == 0


TestLending = Lending.TestCase
TestLending.settings = settings(max_examples=100, stateful_step_count=40)


def test_a_block_comes_back_from_whichever_thread_drops_it() -> None:
    mine, theirs, fd = areas(SMALL)
    os.close(fd)
    lender, borrower = arena.Lender(mine), arena.Borrower(theirs)
    block = lender.lend(1000)
    assert block
    views = [borrower.borrow(*block, 1000)]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    lender.look()
    assert (borrower.count, lender.lent_bytes) == (0, 0)


def test_views_outlive_the_borrower() -> None:
    mine, theirs, fd = areas(SMALL)
    os.close(fd)
    handle, offset = arena.Lender(mine).lend(4) or (0, 0)
    mine.arena[offset : offset + 4] = b"data"
    borrower = arena.Borrower(theirs)
    view = borrower.borrow(handle, offset, 4)
    del borrower, theirs, mine
    gc.collect()
    assert bytes(view) == b"data"
    assert view.readonly


def test_large_blocks_give_their_pages_back() -> None:
    mine, theirs, fd = areas(LARGE)
    lender, borrower = arena.Lender(mine), arena.Borrower(theirs)
    size = 200 * 2**20
    handle, offset = lender.lend(size) or (0, 0)
    mine.arena[offset : offset + size] = bytes(size)
    view = borrower.borrow(handle, offset, size)
    assert os.fstat(fd).st_blocks * 512 >= size
    del view
    lender.look()
    assert os.fstat(fd).st_blocks * 512 < 70 * 2**20
    os.close(fd)


@pytest.mark.parametrize(
    ("handle", "offset", "size"),
    [(1, 0, 8), (0, 0, 0), (0, -8, 8), (0, SMALL.arena_bytes, 1), (0, 2**63, 8), (4096, 0, 8), (-1, 0, 8)],
)
def test_a_block_that_was_not_lent_is_refused(handle: int, offset: int, size: int) -> None:
    mine, theirs, fd = areas(SMALL)
    os.close(fd)
    assert arena.Lender(mine).lend(64) is not None
    mine.lent[4095] = 1
    with pytest.raises(MalformedError):
        arena.Borrower(theirs).borrow(handle, offset, size)


def test_a_block_is_borrowed_once() -> None:
    mine, theirs, fd = areas(SMALL)
    os.close(fd)
    handle, offset = arena.Lender(mine).lend(64) or (0, 0)
    borrower = arena.Borrower(theirs)
    view = borrower.borrow(handle, offset, 64)
    with pytest.raises(MalformedError):
        borrower.borrow(handle, offset, 64)
    assert len(view) == 64

"""The ring: nothing is lost, doubled, reordered or changed, and no wake-up is missed."""

from __future__ import annotations

import collections
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gpu_worker.ipc import memory, ring
from gpu_worker.ipc.malformed import MalformedError

RECORDS = st.binary(max_size=120)


class Counters(list[int]):
    """The counters; before each access of one side the other side may do something."""

    def __init__(self) -> None:
        super().__init__([0] * (memory.PAGE_BYTES // 8))
        self.between: Callable[[], None] | None = None

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # one word at a time
        self._interrupt()
        return super().__getitem__(index)

    def __setitem__(self, index: int, value: int) -> None:  # type: ignore[override]  # the same
        self._interrupt()
        super().__setitem__(index, value)

    def _interrupt(self) -> None:
        between, self.between = self.between, None
        if between is not None:
            between()


class Crossing(RuleBasedStateMachine):
    """Each side's steps in any order, the one's between any two accesses of the other's."""

    @initialize(size=st.sampled_from([256, 264, 512, 1024]))
    def begin(self, size: int) -> None:
        self.words = Counters()
        data = memoryview(bytearray(size))
        self.writer = ring.Writer(self.words, data)
        self.reader = ring.Reader(self.words, data)
        self.longest = ring.longest_bytes(size)
        self.written: collections.deque[bytes] = collections.deque()
        self.published: collections.deque[bytes] = collections.deque()
        self.asleep = False
        self.bell = False

    def write(self, record: bytes) -> None:
        record = record[: self.longest]
        if self.writer.write(record):
            self.written.append(record)

    def publish(self) -> None:
        # Seen from here a record is there as soon as it may be there.
        self.published += self.written
        self.written.clear()
        if self.writer.publish():
            self.bell = True

    def drain(self) -> None:
        while (record := self.reader.read()) is not None:
            assert record == self.published.popleft()
        self.reader.release()

    def sleep(self) -> None:
        self.drain()
        self.asleep = self.reader.sleep()

    def wake(self) -> None:
        if self.bell:
            self.bell = self.asleep = False
            self.drain()

    @rule(record=RECORDS)
    def writes(self, record: bytes) -> None:
        self.write(record)

    @rule(record=RECORDS, awake=st.booleans())
    def publishes_while_the_other_acts(self, record: bytes, awake: bool) -> None:  # noqa: FBT001 - hypothesis' form
        self.write(record)
        if not self.asleep:
            self.words.between = self.drain if awake else self.sleep
        self.publish()
        self.words.between = None

    @rule(record=RECORDS)
    @precondition(lambda self: not self.asleep)
    def sleeps_while_the_other_writes(self, record: bytes) -> None:
        def act() -> None:
            self.write(record)
            self.publish()

        self.words.between = act
        self.sleep()
        self.words.between = None

    @rule()
    @precondition(lambda self: not self.asleep)
    def reads(self) -> None:
        self.drain()

    @rule()
    def is_woken(self) -> None:
        self.wake()

    def teardown(self) -> None:
        if not hasattr(self, "writer"):
            return
        self.publish()
        # Whoever sleeps with something to read has a bell on its way.
        assert not (self.asleep and self.published) or self.bell
        self.drain()
        assert not self.published


TestCrossing = Crossing.TestCase
TestCrossing.settings = settings(max_examples=200, stateful_step_count=40)


@given(st.lists(RECORDS, min_size=1))
def test_a_record_of_the_greatest_length_fits_wherever_the_head_is(before: list[bytes]) -> None:
    words = [0] * 512
    data = memoryview(bytearray(512))
    writer, reader = ring.Writer(words, data), ring.Reader(words, data)
    longest = bytes(range(256))[: ring.longest_bytes(512)]
    for record in [*before, longest]:
        assert writer.write(record)
        writer.publish()
        assert reader.read() == record
        reader.release()


def test_a_full_ring_refuses_and_takes_more_once_it_was_read() -> None:
    words = [0] * 512
    data = memoryview(bytearray(256))
    writer, reader = ring.Writer(words, data), ring.Reader(words, data)
    while writer.write(b"x" * 40):
        pass
    writer.publish()
    assert not writer.write(b"x" * 40)
    assert reader.read() == b"x" * 40
    assert not writer.write(b"x" * 40), "not given back yet"
    reader.release()
    assert writer.write(b"x" * 40)


def test_a_record_that_never_fits_is_an_error() -> None:
    writer = ring.Writer([0] * 512, memoryview(bytearray(256)))
    with pytest.raises(ValueError, match="longer than the ring"):
        writer.write(bytes(121))


def test_a_bell_is_rung_only_for_who_sleeps() -> None:
    words = [0] * 512
    data = memoryview(bytearray(256))
    writer, reader = ring.Writer(words, data), ring.Reader(words, data)
    writer.write(b"a")
    assert not writer.publish()
    assert not reader.sleep(), "there is something to read"
    reader.read()
    assert reader.sleep()
    assert not writer.publish(), "nothing new"
    writer.write(b"b")
    assert writer.publish()
    writer.write(b"c")
    assert not writer.publish(), "it was woken already"


@given(st.binary(min_size=512, max_size=512), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_bytes_that_no_writer_wrote_raise_or_read_as_something(noise: bytes, head: int, tail: int) -> None:
    words = [0] * 512
    words[memory.TAIL] = tail % 2**32 * 8
    words[memory.HEAD] = min(words[memory.TAIL] + head % 1024, 2**64 - 1)
    reader = ring.Reader(words, memoryview(bytearray(noise)))
    try:
        for _ in range(64):
            record = reader.read()
            assert record is None or len(record) < 512
    except MalformedError:
        pass

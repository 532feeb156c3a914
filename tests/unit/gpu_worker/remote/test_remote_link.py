"""Messages between the two ends: exactly once, in order, unchanged, whatever their size and whoever is slow."""

from __future__ import annotations

import collections
import contextlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gpu_worker.engine import border
from gpu_worker.ipc import link, memory
from gpu_worker.ipc.malformed import MalformedError
from gpu_worker.remote import messages
from tests.support import border_values

SMALL = memory.Sizes(ring_bytes=4096, handles=4096, arena_bytes=64 * 1024)
BUFFERS = st.lists(st.integers(0, 3000).map(lambda size: (bytes(range(256)) * 12)[:size]), max_size=4)


class Ends:
    """A sender and a receiver of one area."""

    def __init__(self, sizes: memory.Sizes = SMALL) -> None:
        fd = memory.create("tms-test", sizes)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.area = memory.Area(fd, sizes)
        self.sender = link.Sender(self.area, self.bell)
        self.receiver = link.Receiver(memory.Area(fd, sizes), self.bell)
        os.close(fd)

    def close(self) -> None:
        os.close(self.bell)

    def rung(self) -> bool:
        try:
            return bool(os.eventfd_read(self.bell))
        except BlockingIOError:
            return False

    def across(self, message: link.Message) -> link.Message:
        assert self.sender.send(message)
        self.sender.publish()
        received = self.receiver.receive()
        self.receiver.release()
        assert received is not None
        return received


class Conversation(RuleBasedStateMachine):
    """Sends of any size, and a receiver that keeps what it has for as long as it likes."""

    @initialize()
    def begin(self) -> None:
        self.ends = Ends()
        self.number = 0
        self.under_way: collections.deque[link.Message] = collections.deque()
        self.kept: list[tuple[link.Message, link.Message]] = []

    @rule(head=st.integers(0, 6000), buffers=BUFFERS, flags=st.integers(0, 255))
    def send(self, head: int, buffers: list[bytes], flags: int) -> None:
        self.number += 1
        message = link.Message(messages.Kind.CALL, self.number, b"h" * head, buffers, flags)
        if self.ends.sender.send(message):
            self.under_way.append(message)
        else:
            assert self.under_way or self.kept, "an empty link takes what it can take at all"

    @rule()
    def publish(self) -> None:
        self.ends.sender.publish()

    @rule()
    def receive(self) -> None:
        while (message := self.ends.receiver.receive()) is not None:
            self.kept.append((self.under_way.popleft(), message))
        self.ends.receiver.release()

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if self.kept:
            self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1)))

    @rule()
    def compare(self) -> None:
        for sent, received in getattr(self, "kept", []):
            assert (received.kind, received.number, received.head, received.flags) == (
                sent.kind,
                sent.number,
                sent.head,
                sent.flags,
            )
            assert list(map(bytes, received.buffers)) == list(sent.buffers)

    def teardown(self) -> None:
        if not hasattr(self, "ends"):
            return
        self.publish()
        self.receive()
        self.compare()
        assert not self.under_way
        self.kept.clear()
        assert (self.ends.receiver.borrowed, self.ends.sender.lent_bytes) == (0, 0)
        self.ends.close()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=100, stateful_step_count=40)


@pytest.fixture
def ends() -> Ends:
    return Ends(memory.Sizes(arena_bytes=2**26))


@given(border_values.requests())
def test_requests_cross_exactly(asked: border.InferRequest) -> None:
    ends = Ends()
    received = messages.read_request(ends.across(messages.request(7, asked)), border_values.unanswered)
    for tensor in received.inputs:
        tensor.data = bytes(tensor.data)
    assert repr(received) == repr(asked)
    ends.close()


@given(
    border_values.records(border.InferResponse)
    | st.builds(border.InferenceError, st.sampled_from(border.ErrorKind), border_values.TEXT),
    st.booleans(),
)
def test_answers_cross_exactly(answer: border.InferResponse | border.InferenceError, final: bool) -> None:  # noqa: FBT001 - hypothesis' form
    ends = Ends()
    message = ends.across(messages.answer(7, answer, final=final))
    received = messages.read_answer(message)
    assert messages.is_final(message) == final
    if isinstance(received, border.InferResponse):
        for tensor in received.outputs:
            tensor.data = bytes(tensor.data)
        assert repr(received) == repr(answer)
    else:
        assert isinstance(answer, border.InferenceError)
        assert (received.kind, received.message) == (answer.kind, answer.message)
    ends.close()


@given(st.text(max_size=5), st.lists(st.integers()), st.dictionaries(st.text(max_size=5), st.binary(max_size=9)))
def test_calls_cross_exactly(name: str, positional: list[int], named: dict[str, bytes]) -> None:
    message = messages.call(1, name, positional, named)
    assert messages.read_call(message) == (name, tuple(positional), named)


@given(st.sampled_from(messages.Kind), st.binary(max_size=100), st.lists(st.binary(max_size=9), max_size=3))
def test_heads_that_make_no_sense_raise(kind: messages.Kind, head: bytes, buffers: list[bytes]) -> None:
    message = link.Message(kind, 1, head, buffers)
    for read in (
        lambda: messages.read_request(message, border_values.unanswered),
        lambda: messages.read_answer(message),
        lambda: messages.read_call(message),
        lambda: messages.read_leaving(message),
    ):
        try:
            read()
        except MalformedError:
            continue


@given(border_values.requests(), st.data())
def test_changed_requests_raise_or_are_others(asked: border.InferRequest, data: st.DataObject) -> None:
    message = messages.request(1, asked)
    head = bytearray(message.head)
    head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    message.head = bytes(head)
    try:
        messages.read_request(message, border_values.unanswered)
    except MalformedError:
        return


@given(st.binary(max_size=100))
def test_records_that_make_no_sense_raise(record: bytes) -> None:
    ends = Ends()
    ends.sender._ring.write(record)
    ends.sender._ring.publish()
    with contextlib.suppress(MalformedError):
        ends.receiver.receive()
    ends.close()


def test_large_tensors_are_read_where_they_were_written(ends: Ends) -> None:
    array = np.arange(2**18, dtype=np.float32)
    received = ends.across(link.Message(1, 1, b"head", [array.data.cast("B"), b"more"]))
    view = np.frombuffer(received.buffers[0], np.float32)
    assert (view == array).all()
    start = ends.area.arena_start
    ends.area.map[start : start + 4] = b"\0\0\x80\x3f"
    assert view[0] == 1.0, "the receiver sees the shared memory itself"
    assert view.flags.aligned
    assert bytes(received.buffers[1]) == b"more"
    assert not view.flags.writeable


def test_small_tensors_are_aligned_for_arrays(ends: Ends) -> None:
    for head in range(20):
        received = ends.across(link.Message(1, 1, b"h" * head, [b"abc", bytes(16)]))
        assert np.frombuffer(received.buffers[1], np.float64).flags.aligned


def test_the_bell_rings_for_who_sleeps_alone(ends: Ends) -> None:
    ends.across(link.Message(1, 1))
    assert not ends.rung()
    assert ends.receiver.sleep()
    ends.across(link.Message(1, 2))
    assert ends.rung()


def test_what_never_fits_is_told_apart_from_what_does_not_fit_now(ends: Ends) -> None:
    message = link.Message(1, 1, b"", [bytes(2**26 - 8192)])
    ends.sender.check(message)
    kept = ends.across(message)
    assert not ends.sender.send(message)
    del kept
    assert ends.sender.send(message)
    with pytest.raises(ValueError, match="more than can be sent at all"):
        ends.sender.check(link.Message(1, 1, b"", [bytes(2**26)]))


def test_slow_readers_do_not_fill_the_arena(ends: Ends) -> None:
    """Far into the arena bytes are copied out at once: who keeps them takes no room from others."""
    kept = [ends.across(link.Message(1, number, b"", [bytes(2**20)])) for number in range(200)]
    assert len(kept) == 200
    assert ends.sender.lent_bytes < 2**26

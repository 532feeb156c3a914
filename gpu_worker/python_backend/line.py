"""The way from a model's process to its worker: one reader at a time among the model's threads, whichever waits first.

Decides who reads: a thread that waits for something reads for all, so that no thread need be woken to wake another. A
process whose worker has gone ends at once. Must never lose a message that another thread waits for.
"""

from __future__ import annotations

import collections
import os
import select
import threading
from collections.abc import Callable, Iterable, Sequence

from gpu_worker.ipc import link
from gpu_worker.python_backend import wire

_RETRY_MS = 1


class Line:
    """`arrived` holds batches and orders, `answers` what was asked by number; both are looked at in `until` only."""

    def __init__(self, sender: link.Sender, receiver: link.Receiver, control: int) -> None:
        self._sender = sender
        self._receiver = receiver
        self._sending = threading.Lock()
        self._turn = threading.Condition()
        self._reading = False
        self._poll = select.poll()
        self._poll.register(receiver.doorbell, select.POLLIN)
        self._poll.register(control, select.POLLIN)
        self._control = control
        self._numbers = 0
        self.arrived: collections.deque[link.Message] = collections.deque()
        self.answers: dict[int, collections.deque[link.Message]] = {}
        self._begun = 0
        self._alive: set[int] = set()
        self._cancelled: set[int] = set()

    def send(self, message: link.Message) -> None:
        """Waits for room. Raises ValueError for what never has any."""
        self._sender.check(message)
        with self._sending:
            while not self._sender.send(message):
                self._sender.publish()
                self._end_with_worker(select.select([self._control], [], [], _RETRY_MS / 1000)[0])
            self._sender.publish()

    def next(self) -> link.Message:
        """The next batch or order."""
        self.until(lambda: bool(self.arrived))
        return self.arrived.popleft()

    def ask(self, message: link.Message) -> int:
        """Sends what will be answered; the number that its answers come under."""
        with self._turn:
            self._numbers += 1
            number = message.number = self._numbers
            self.answers[number] = collections.deque()
        self.send(message)
        return number

    def answer(self, number: int) -> link.Message:
        """The next answer to what was asked."""
        self.until(lambda: bool(self.answers[number]))
        message = self.answers[number].popleft()
        if message.flags & wire.FINAL:
            self.forget(number)
        return message

    def forget(self, number: int) -> None:
        """No more answers are wanted."""
        with self._turn:
            self.answers.pop(number, None)

    def is_cancelled(self, number: int) -> bool:
        """Whether nobody waits for that request any more, as far as is known now."""
        with self._turn:
            if not self._reading:
                self._receive()
            return number in self._cancelled

    def began(self, numbers: Sequence[int]) -> None:
        """These requests, whose numbers ascend, are with the model now."""
        with self._turn:
            self._begun = numbers[-1]
            self._alive.update(numbers)

    def finished(self, numbers: Iterable[int]) -> None:
        """These requests are answered."""
        with self._turn:
            self._alive.difference_update(numbers)
            self._cancelled = {each for each in self._cancelled if each in self._alive or each > self._begun}

    def until(self, there: Callable[[], bool]) -> None:
        """Reads, or lets another thread read, until that is so."""
        with self._turn:
            while not there():
                if self._reading:
                    self._turn.wait()
                elif not self._receive():
                    self._listen()

    def _listen(self) -> None:
        """Waits for the bell without holding up the others."""
        if not self._receiver.sleep():
            return
        self._reading = True
        self._turn.release()
        try:
            found = dict(self._poll.poll())
            self._end_with_worker([self._control] if self._control in found else [])
            self._receiver.silence()
        finally:
            self._turn.acquire()
            self._reading = False
            self._turn.notify_all()

    def _receive(self) -> bool:
        """Takes what there is."""
        found = False
        while (message := self._receiver.receive()) is not None:
            found = True
            self._take(message)
        self._receiver.release()
        if found:
            self._turn.notify_all()
        return found

    def _take(self, message: link.Message) -> None:
        if message.kind == wire.Kind.ANSWER:
            waiting = self.answers.get(message.number)
            if waiting is not None:
                waiting.append(message)
        elif message.kind == wire.Kind.CANCEL:
            # It may come before the model has begun with what it came after.
            if message.number in self._alive or message.number > self._begun:
                self._cancelled.add(message.number)
        else:
            self.arrived.append(message)

    def _end_with_worker(self, heard: list[int]) -> None:
        if heard:
            os._exit(1)

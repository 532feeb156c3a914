"""Receives on an event loop: messages are handled in turns, and the peer is asked to ring only when there are none.

Decides how long a turn may last and when this side sleeps. Must never let what one message does end the pump: only
bytes that make no sense do, and whoever owns it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from gpu_worker.ipc import link
from gpu_worker.ipc.malformed import MalformedError

log = structlog.get_logger(__name__)

_TURN = 256


class Pump:
    """Calls `handle` for each message, then `after` once a turn; `broken` when the peer is not to be understood."""

    def __init__(
        self,
        receiver: link.Receiver,
        handle: Callable[[link.Message], None],
        after: Callable[[], None],
        broken: Callable[[str], None],
    ) -> None:
        self._receiver = receiver
        self._handle = handle
        self._after = after
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._loop.add_reader(receiver.doorbell, self._woken)
        # What came before anybody listened rang for nobody.
        self._next: asyncio.Handle | None = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        """Handles nothing more."""
        if self._running:
            self._running = False
            self._loop.remove_reader(self._receiver.doorbell)
            # Else the owner and this would hold each other, and all their memory, until garbage is searched for.
            self._handle = self._after = self._broken = _nothing

    def finish(self) -> None:
        """Handles what the peer left behind, and nothing more."""
        if not self._running:
            return
        try:
            while self._receive():
                self._after()
        except MalformedError as error:
            log.warning("message.malformed", reason=str(error))
        self.stop()

    def _woken(self) -> None:
        self._receiver.silence()
        # A bell that rang late finds this side awake.
        if self._next is None:
            self._turn()

    def _turn(self) -> None:
        self._next = None
        if not self._running:
            return
        try:
            handled = self._receive()
        except MalformedError as error:
            broken = self._broken
            self.stop()
            broken(str(error))
            return
        # As long as messages come, looking again is cheaper than being woken.
        if handled or not self._receiver.sleep():
            self._next = self._loop.call_soon(self._turn)
        self._after()

    def _receive(self) -> int:
        handled = 0
        while handled < _TURN and (message := self._receiver.receive()) is not None:
            handled += 1
            try:
                self._handle(message)
            except MalformedError:
                raise
            except Exception:
                log.exception("message.failed", kind=message.kind)
        self._receiver.release()
        return handled


def _nothing(*_about: object) -> None:
    """What a pump that was stopped does."""

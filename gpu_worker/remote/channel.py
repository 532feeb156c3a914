"""What the supervisor and one of its processes tell each other: few words, now and then descriptors.

A socket of whole messages (SOCK_SEQPACKET), JSON in each. Its end is the end of whoever was there: a process that loses
its supervisor so must not live on. Must never carry what clients send.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import structlog

log = structlog.get_logger(__name__)

Words = dict[str, Any]
Heard = Callable[[Words, list[int]], None]

_MOST_BYTES = 2**16
_MOST_DESCRIPTORS = 8


class Channel:
    """One end. `heard` gets each message with its descriptors, which are its own; `ended` is called once."""

    def __init__(self, end: socket.socket, heard: Heard, ended: Callable[[], None]) -> None:
        self._socket = end
        self._socket.settimeout(0)
        self._heard = heard
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self._read)
        self._open = True

    def tell(self, kind: str, descriptors: Sequence[int] = (), **words: Any) -> None:
        """Sends a message; where nobody is there any more, that will be heard as the end."""
        if not self._open:
            return
        try:
            socket.send_fds(self._socket, [json.dumps({"kind": kind, **words}).encode()], descriptors)
        except OSError as error:
            log.debug("channel.unheard", kind=kind, reason=str(error))

    def close(self) -> None:
        """Says and hears nothing more."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _MOST_BYTES, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self.close()
            self._ended()
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - the system's form
        self._heard(json.loads(data), list(descriptors))


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

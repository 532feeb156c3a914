"""The ports that several front processes share.

Decides what a port is before any front listens, so that all take the same one. A reserved port has a bound socket that
never listens: it gets no connections, and holds the place while fronts come and go. Must never share a port with
strangers who were there before, unless the flags ask for that.
"""

from __future__ import annotations

import socket


class Reserved:
    """A port of an address, kept until `close`."""

    def __init__(self, address: str, port: int, *, shared: bool) -> None:
        """OSError when the address or the port cannot be had; `shared` where others may listen there already."""
        family, _, _, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        try:
            if port and not shared:
                self._check_free(family, place)
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind(place)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {address} port {port}: {error.strerror}") from error
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()

    def _check_free(self, family: int, place: tuple[object, ...]) -> None:
        """Several that share a port cannot tell whether others were there: one that does not share can."""
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(place)

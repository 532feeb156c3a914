"""A store for the benchmark of fetches: files of a folder over S3's GET and HEAD, sent by the kernel.

Knows ranges and ETags and nothing else, so that what is measured is the client. ``python -m benchmarks.store DIR`` prints
its port and serves until it is stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import socketserver
import sys
import urllib.parse

ROOT = pathlib.Path()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


class _Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while line := self.rfile.readline():
            method, path, _version = line.decode().split(" ", 2)
            asked = {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, _colon, value = header.partition(":")
                asked[name.lower()] = value.strip()
            self._answer(method, ROOT / urllib.parse.unquote(path).lstrip("/"), asked.get("range", ""))

    def finish(self) -> None:
        """A client that goes is no trouble."""
        with contextlib.suppress(OSError):
            super().finish()

    def _answer(self, method: str, path: pathlib.Path, asked: str) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, _dash, last = asked.removeprefix("bytes=").partition("-")
            start, end = (int(first), min(int(last or size - 1) + 1, size)) if asked else (0, size)
            lines = [
                "HTTP/1.1 206 Partial Content" if asked else "HTTP/1.1 200 OK",
                f"ETag: {tag(path.name, size)}",
                f"Content-Length: {end - start}",
                "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT",
                *([f"Content-Range: bytes {start}-{end - 1}/{size}"] if asked else []),
            ]
            self.wfile.write("\r\n".join([*lines, "", ""]).encode())
            with contextlib.suppress(ConnectionError):
                while method == "GET" and start < end:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)


def tag(name: str, size_bytes: int) -> str:
    """What stands for the version of a file here."""
    return f'"{hashlib.md5(f"{name} {size_bytes}".encode(), usedforsecurity=False).hexdigest()}"'


def main(directory: str) -> None:
    """Serves the directory."""
    global ROOT  # noqa: PLW0603 - one store is one process
    ROOT = pathlib.Path(directory)
    with _Server(("127.0.0.1", 0), _Connection) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])

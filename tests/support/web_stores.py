"""Stores that are spoken to over plain HTTP: a web server with directory indexes, and Google Cloud Storage's emulator."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import pathlib
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from gcp_storage_emulator import server as emulator


class Site:
    """Serves a directory as simple web servers do: indexes, entity tags, no ranges."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.authorizations: list[str] = []
        handler = functools.partial(_Handler, self, directory=str(root))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def put(self, path: str, content: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, site: Site, *args: Any, **more: Any) -> None:
        self._site = site
        super().__init__(*args, **more)

    def send_head(self) -> Any:
        self._site.authorizations.append(self.headers.get("Authorization", ""))
        return super().send_head()

    def end_headers(self) -> None:
        path = pathlib.Path(self.translate_path(self.path))
        if path.is_file():
            found = path.stat()
            self.send_header("ETag", f'"{found.st_mtime_ns:x}-{found.st_size:x}"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Gcs:
    """One bucket of the emulator."""

    def __init__(self, url: str, bucket: str) -> None:
        self.url, self.bucket = url, bucket
        self._call("storage/v1/b", json.dumps({"name": bucket}).encode(), "application/json")

    def put(self, name: str, content: bytes) -> str:
        """Answers the object's generation. The emulator takes no empty object: a byte stands for none."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        path = f"upload/storage/v1/b/{self.bucket}/o?{query}"
        return str(json.loads(self._call(path, content or b"\n", "application/octet-stream"))["generation"])

    def _call(self, path: str, body: bytes, kind: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


@contextlib.contextmanager
def gcs(bucket: str = "bucket") -> Iterator[Gcs]:
    """The emulator for as long as the block."""
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    try:
        yield Gcs(f"http://127.0.0.1:{server._api._httpd.server_port}", bucket)
    finally:
        server.stop()

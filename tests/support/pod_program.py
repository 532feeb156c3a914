"""A small program that stands for a worker or a sidecar in a pod: says what it is and answers 200 to every GET.

Run as a file: ``pod_program.py NAME PORT [ARGUMENTS OF THE POD...]``; listens on $POD_IP, or exits with $POD_EXIT.
"""

from __future__ import annotations

import http.server
import os
import signal
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the pod's name."""

    def do_GET(self) -> None:
        content = os.environ["POD_NAME"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Probes come every second; they are no news."""


def main(name: str, port: str) -> None:
    """Serves until it is told to end."""
    sys.stdout.write(f"{name} started\n")
    sys.stdout.flush()
    if code := os.environ.get("POD_EXIT"):
        sys.exit(int(code))
    server = http.server.ThreadingHTTPServer((os.environ["POD_IP"], int(port)), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

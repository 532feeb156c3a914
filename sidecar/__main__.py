"""The tms-sidecar command."""

from __future__ import annotations

import gc
import sys

import uvloop

from sidecar import app, logs, settings


def main() -> None:
    """Parses flags and environment, runs until stopped, exits with the code that says why."""
    configured = settings.parse(sys.argv[1:])
    logs.configure(configured.log_level)
    # A search for garbage in all that was imported would hold the clients' bytes up for tens of milliseconds.
    gc.collect()
    gc.freeze()
    try:
        code = uvloop.run(app.run(configured))
    except OSError as error:
        sys.stderr.write(f"tms-sidecar: {error.filename or 'start'}: {error.strerror}; check the directories given\n")
        code = 1
    raise SystemExit(code)


if __name__ == "__main__":
    main()

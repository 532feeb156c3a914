"""Runs tms-worker."""

from __future__ import annotations

import sys

from gpu_worker import app


def main() -> None:
    sys.exit(app.main())


if __name__ == "__main__":
    main()

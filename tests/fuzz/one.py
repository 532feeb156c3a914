"""One target under atheris: ``python -m tests.fuzz.one TARGET [OPTION OF LIBFUZZER ...] [FOLDER ...]``."""

from __future__ import annotations

import logging
import sys

import atheris
import structlog

with atheris.instrument_imports(include=["gpu_worker"]):
    from tests.fuzz import inputs


def main() -> None:
    """Never returns."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    name = sys.argv.pop(1)
    # To merge, libFuzzer starts what it takes for its program again, through a shell.
    arguments = [f"{sys.executable} -m tests.fuzz.one {name}", *sys.argv[1:]]
    atheris.Setup(arguments, inputs.TARGETS[name].fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

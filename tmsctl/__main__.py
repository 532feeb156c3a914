"""Decides nothing: starts the commands and turns failures into lines and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Its own lines would stand between ours; what it has to say comes with the error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tmsctl import app, errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers the exit code of a failure; leaves through SystemExit otherwise."""
    try:
        app.app(args=arguments, prog_name="tmsctl")
    except errors.CliError as problem:
        _complain(problem)
        return problem.code
    except Exception as problem:
        if os.environ.get("TMS_DEBUG"):
            raise
        said = f"{type(problem).__name__}: {problem}"
        _complain(errors.CliError(said, field="internal", remedy="TMS_DEBUG=1 shows where."))
        return errors.Exit.FAILED
    return errors.Exit.OK


def _complain(problem: errors.CliError) -> None:
    for line in problem.lines():
        print(line, file=sys.stderr)  # noqa: T201 - a command line prints


if __name__ == "__main__":
    sys.exit(main())

"""Makes the environment of the real tritonserver ready: ``python -m tests.conformance.triton``."""

from __future__ import annotations

import sys

from tests.conformance.triton import environment

if __name__ == "__main__":
    if unfit := environment.unfit():
        sys.stderr.write(f"no tritonserver on this machine: {unfit}\n")
    else:
        try:
            sys.stdout.write(f"{environment.ensure().server}\n")
        except environment.EnvironmentFault as error:
            sys.exit(f"error: {error}")

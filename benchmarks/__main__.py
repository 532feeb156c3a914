"""``make bench``: prints every figure beside its reference; ``--output json`` for programs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys

from rich.console import Console

from benchmarks import activation, control_plane, ensemble, fetching, frontends, inference, report
from benchmarks.fronts import python_backend
from benchmarks.fronts import section as fronts
from benchmarks.pods import section

SECTIONS = {
    "control-plane": control_plane.run,
    "activation": activation.run,
    "fetch": fetching.run,
    "inference": inference.run,
    "ensemble": ensemble.run,
    "fronts": fronts.run,
    "frontends": frontends.run,
    "python-backend": python_backend.run,
    "kubernetes": section.run,
}


def main() -> None:
    """Runs the sections asked for, all by default, with progress on stderr."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=main.__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped, as after Ctrl-C
    progress, console = Console(stderr=True), Console()
    done = []
    for name in options.sections or _possible():
        with progress.status(f"measuring {name}"):
            done.append(SECTIONS[name]())
        if options.output == "table":
            report.show(console, done[-1])
    console.print(f"machine: {report.machine()}") if options.output == "table" else json.dump(
        {"machine": report.machine(), "sections": [dataclasses.asdict(section) for section in done]},
        sys.stdout,
        indent=2,
    )


def _possible() -> list[str]:
    """All sections that this place has what they need for."""
    if section.has_cluster():
        return list(SECTIONS)
    sys.stderr.write("kubernetes: left out, for there is no test cluster around; make bench-kubernetes starts one\n")
    return [name for name in SECTIONS if name != "kubernetes"]


if __name__ == "__main__":
    main()

"""Looks for inputs that break a promise, led by the code they reach: ``python -m tests.fuzz [SECONDS] [TARGET ...]``.

Each target runs in a process of its own under atheris, from its seeds and what is kept below ``corpus``. An input that
breaks a promise is written there, where the tests find it from then on; so are inputs that reach new code, when
``--keep`` is given, as few and as small as reach it all.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tests.fuzz import inputs

_KEPT_BYTES = 256
_KEPT = 24


def main() -> int:
    """0 when nothing was found, 1 when something was, 2 when nothing can be looked for."""
    parser = argparse.ArgumentParser("tests.fuzz", description="Fuzzes the worker's parsers.")
    parser.add_argument("seconds", nargs="?", type=int, default=60, help="how long for each target")
    parser.add_argument("targets", nargs="*", default=[], metavar="TARGET", help=f"of {', '.join(inputs.TARGETS)}")
    parser.add_argument("--keep", action="store_true", help="keep inputs that reach new code")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(inputs.TARGETS):
        parser.error(f"there is no target {', '.join(unknown)}")
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("atheris has no wheel for this Python or machine: use CPython 3.11 to 3.14 on Linux, x86-64\n")
        return 2
    found = [name for name in given.targets or inputs.TARGETS if not _look(name, given.seconds, keep=given.keep)]
    sys.stdout.write(f"broken: {', '.join(found)}\n" if found else "nothing found\n")
    return 1 if found else 0


def _look(name: str, seconds: int, *, keep: bool) -> bool:
    """True when nothing was found."""
    sys.stdout.write(f"{name}: {seconds} s\n")
    sys.stdout.flush()
    kept = inputs.CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fresh, seeds = pathlib.Path(folder, "new"), pathlib.Path(folder, "seeds")
        fresh.mkdir()
        seeds.mkdir()
        for number, data in enumerate(inputs.known(name)):
            (seeds / str(number)).write_bytes(data)
        command = [sys.executable, "-m", "tests.fuzz.one", name, f"-max_total_time={seconds}", *_options(kept)]
        fine = subprocess.run([*command, str(fresh), str(seeds)], check=False).returncode == 0
        if keep and fine:
            _keep(name, fresh, kept)
    if not any(kept.iterdir()):
        kept.rmdir()
    return fine


def _options(kept: pathlib.Path) -> list[str]:
    """A second for an input is a hang; more than two gigabytes is a leak."""
    return [
        f"-max_len={inputs.LONGEST}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-seed=1",
        "-print_final_stats=1",
        "-verbosity=1",
        f"-artifact_prefix={kept}/",
    ]


def _keep(name: str, fresh: pathlib.Path, kept: pathlib.Path) -> None:
    """The smallest inputs that together reach what all did."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.fuzz.one", name, "-merge=1", folder, str(kept), str(fresh)]
        subprocess.run(command, check=True, capture_output=True)
        small = sorted(pathlib.Path(folder).iterdir(), key=lambda path: path.stat().st_size)
        for path in small[:_KEPT]:
            if path.stat().st_size <= _KEPT_BYTES:
                shutil.copy(path, kept / path.name)


if __name__ == "__main__":
    sys.exit(main())

"""Each program installs apart: its extra alone is enough, and what it must not need is not there."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Installed(NamedTuple):
    """One program as a user would install it."""

    extra: str
    program: str
    absent: tuple[str, ...]


PROGRAMS = [
    Installed("server", "tms-server", ("onnxruntime", "typer")),
    Installed("cli", "tmsctl", ("onnxruntime", "sqlalchemy", "boto3", "numpy")),
    Installed("sidecar", "tms-sidecar", ("onnxruntime", "sqlalchemy", "numpy")),
    Installed("worker-cpu", "tms-worker", ("sqlalchemy", "boto3", "typer")),
]


@pytest.mark.slow  # installs packages
@pytest.mark.timeout(600)
@pytest.mark.parametrize("installed", PROGRAMS, ids=lambda installed: installed.extra)
def test_each_extra_is_enough_for_its_program(installed: Installed, tmp_path: pathlib.Path) -> None:
    venv = tmp_path / "venv"
    _uv("venv", "--python", sys.executable, str(venv))
    python = str(venv / "bin" / "python")
    constraint = str(ROOT / "requirements.lock")
    _uv("pip", "install", "--python", python, "--constraint", constraint, f"{ROOT}[{installed.extra}]")

    helped = subprocess.run([venv / "bin" / installed.program, "--help"], capture_output=True, text=True, cwd=tmp_path)
    found = [name for name in installed.absent if _importable(python, name, tmp_path)]

    assert helped.returncode == 0, helped.stderr
    assert "--" in helped.stdout
    assert found == []


def _uv(*arguments: str) -> None:
    uv = pathlib.Path(sys.executable).parent / "uv"
    done = subprocess.run([uv, "--quiet", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _importable(python: str, name: str, cwd: pathlib.Path) -> bool:
    return subprocess.run([python, "-c", f"import {name}"], capture_output=True, cwd=cwd).returncode == 0

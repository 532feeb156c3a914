"""How the demos show what they do: titles, and commands as a user would type them, before their output."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from rich.console import Console

PROGRAMS = pathlib.Path(sys.executable).parent
console = Console(highlight=False)


def step(title: str) -> None:
    """Begins a part of the demo."""
    console.print(f"\n[bold]{title}[/]")


class Ctl:
    """Runs tmsctl as a user would; prints each command before its output."""

    def __init__(self, target: str, environment: dict[str, str] | None = None) -> None:
        self._environment = {**os.environ, "TMS_TARGET": target, **(environment or {})}

    def show(self, *arguments: str) -> None:
        """One command with its output; raises when it fails."""
        console.print(f"  [dim]$ tmsctl {' '.join(arguments)}[/]")
        subprocess.run([PROGRAMS / "tmsctl", *arguments], check=True, env=self._environment)

    def json(self, *arguments: str) -> Any:
        """The answer of one command, unseen."""
        command = [str(PROGRAMS / "tmsctl"), *arguments, "--output", "json"]
        return json.loads(subprocess.run(command, check=True, env=self._environment, stdout=subprocess.PIPE).stdout)

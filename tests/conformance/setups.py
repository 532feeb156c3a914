"""How the two servers are started: the flags of each setup that cases ask for. Pure."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from tests.conformance import models


@dataclasses.dataclass(frozen=True)
class Setup:
    """The flags that both servers get, and those of each; `{folder}` stands for a folder of the server's own."""

    flags: tuple[str, ...]
    triton_flags: tuple[str, ...] = ()
    our_flags: tuple[str, ...] = ()

    def triton(self, folder: pathlib.Path) -> list[str]:
        return _filled((*self.flags, *self.triton_flags), folder)

    def ours(self, folder: pathlib.Path) -> list[str]:
        return _filled((*self.flags, *self.our_flags), folder)


def _filled(flags: Sequence[str], folder: pathlib.Path) -> list[str]:
    return [flag.replace("{folder}", str(folder)) for flag in flags]


def _explicit(*names: str) -> tuple[str, ...]:
    return (
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        *(f"--load-model={name}" for name in names),
    )


SETUPS = {
    "plain": Setup(_explicit(*models.at_start())),
}

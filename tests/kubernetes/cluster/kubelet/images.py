"""Decides what an image runs, and whether it can be pulled. A name stands for any registry, tag and digest."""

from __future__ import annotations

import json
import pathlib
import sys

_SCRIPTS = pathlib.Path(sys.executable).parent
# Image -> entry point: the console scripts that the real images run.
_OWN = {f"tms/{name}": [str(_SCRIPTS / f"tms-{name}")] for name in ("server", "sidecar", "worker")}


class PullError(Exception):
    """The image cannot be had; the message is a runtime's."""


class Images:
    """What images there are. Those that a test registers are kept in `file`."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file
        self._registered: dict[str, list[str]] = json.loads(file.read_text()) if file.exists() else {}
        self._failing: dict[str, str] = {}

    def register(self, image: str, command: list[str]) -> None:
        """Lets `image` run `command`; an empty one leaves the command to the pod."""
        self._registered[_name(image)] = command
        self._file.write_text(json.dumps(self._registered))

    def fail(self, image: str, message: str) -> None:
        """Lets every pull of `image` fail, until `mend`. A tag says that only this one is meant."""
        self._failing[image] = message

    def mend(self, image: str) -> None:
        self._failing.pop(image, None)

    def pull(self, image: str) -> list[str]:
        """The entry point of an image.

        Raises:
            PullError: there is no such image, or its pull shall fail.
        """
        for failing, message in self._failing.items():
            if image == failing or _matches(image, failing):
                raise PullError(f'failed to pull and unpack image "{image}": {message}')
        for name, command in (self._registered | _OWN).items():
            if _matches(image, name):
                return command
        raise PullError(f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": not found')


def _matches(image: str, name: str) -> bool:
    full = _name(image)
    return full == name or full.endswith(f"/{name}")


def _name(image: str) -> str:
    """Without digest and tag; a colon before a slash is a registry's port."""
    plain = image.partition("@")[0]
    head, slash, last = plain.rpartition("/")
    return head + slash + last.partition(":")[0]

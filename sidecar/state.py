"""What the sidecar remembers on disk: the last desired state and what it loaded under each name.

Decides that a file is seen whole or not at all, and that a broken one counts as none. Must never write a credential.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import structlog
from google.protobuf import json_format

from protos.tms.v1 import agent_pb2
from sidecar import values, wire

log = structlog.get_logger()


class State:
    """The files below the sidecar's own directory. Methods block for the time of a small synced write."""

    def __init__(self, directory: pathlib.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._desired = directory / "desired.json"
        self._loaded = directory / "loaded.json"

    def desired(self) -> agent_pb2.Desired:
        """The last desired state that was saved; an empty one where there is none."""
        try:
            return json_format.Parse(self._desired.read_text(encoding="utf-8"), agent_pb2.Desired())
        except FileNotFoundError:
            return agent_pb2.Desired()
        except (OSError, ValueError, json_format.ParseError) as error:
            log.warning("state.unreadable", file=self._desired.name, error=type(error).__name__)
            return agent_pb2.Desired()

    def save_desired(self, desired: agent_pb2.Desired) -> None:
        _write(self._desired, json_format.MessageToJson(wire.without_credentials(desired)))

    def loaded(self) -> dict[str, values.ModelKey]:
        """By name, what this sidecar last loaded or was about to load."""
        try:
            entries = json.loads(self._loaded.read_text(encoding="utf-8"))
            return {entry["name"]: values.ModelKey(**entry) for entry in entries}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("state.unreadable", file=self._loaded.name, error=type(error).__name__)
            return {}

    def save_loaded(self, loaded: Mapping[str, values.ModelKey]) -> None:
        _write(self._loaded, json.dumps([dataclasses.asdict(key) for key in loaded.values()]))


def _write(target: pathlib.Path, text: str) -> None:
    aside = target.with_suffix(".new")
    with open(aside, "w", encoding="utf-8", opener=_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(target)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)

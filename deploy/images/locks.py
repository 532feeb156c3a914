"""Cuts requirements.lock down to what each image needs.

The lock file pins everything that developers need; an image gets what its extra needs and nothing else, in the same
versions with the same hashes. Reads the environment that was set up from that lock file, asks no index.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import tomllib
from collections.abc import Iterator, Mapping

from packaging import requirements, utils

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EXTRAS: Mapping[str, str] = {"server": "server", "sidecar": "sidecar", "worker": "worker-cpu"}
"""Extra of pyproject.toml by image. The image for CUDA needs all of requirements-gpu.lock."""
MACHINES = ("x86_64", "aarch64")
_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


def text(image: str) -> str:
    """The part of the lock file for one image."""
    locked = entries((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    return "".join(locked[name] for name in sorted(needed(EXTRAS[image])))


def entries(lock: str) -> Mapping[str, str]:
    """Each package's lines of a lock file by its name, hashes included; several where it depends on the Python."""
    starts = [each.start() for each in _LOCKED.finditer(lock)]
    found: dict[str, str] = {}
    for start, end in zip(starts, [*starts[1:], len(lock)], strict=True):
        part = lock[start:end]
        name = utils.canonicalize_name(part.partition("==")[0])
        found[name] = found.get(name, "") + part
    return found


def needed(extra: str) -> frozenset[str]:
    """Names of all packages that an extra of the project brings, on every machine that images are built for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [requirements.Requirement(each) for each in project["dependencies"]]
    waiting += [requirements.Requirement(each) for each in project["optional-dependencies"][extra]]
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        name = utils.canonicalize_name(wanted.name)
        if name == project["name"]:  # an extra that names another one
            for inner in wanted.extras:
                waiting += [requirements.Requirement(each) for each in project["optional-dependencies"][inner]]
        elif (name, frozenset(wanted.extras)) not in seen:
            seen.add((name, frozenset(wanted.extras)))
            found.add(name)
            waiting += _brought(name, wanted.extras)
    return frozenset(found)


def _brought(name: str, extras: set[str]) -> Iterator[requirements.Requirement]:
    for told in importlib.metadata.distribution(name).requires or ():
        wanted = requirements.Requirement(told)
        if wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra, "platform_machine": machine, "sys_platform": "linux"})
            for extra in ("", *extras)
            for machine in MACHINES
        ):
            yield wanted

"""Decides where tmsctl connects: reads and writes the saved targets. Never holds secrets, only the paths of TLS files.

The file is $XDG_CONFIG_HOME/tms/targets.toml, readable by its owner only, replaced as a whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import tempfile
import tomllib
import typing
from collections.abc import Mapping

from tmsctl import errors, values

DEFAULT_ADDRESS = "127.0.0.1:30345"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A server: ``HOST:PORT``, or ``unix:PATH``. `ca`, `cert` and `key` are absolute paths of PEM files, or empty.

    With `tls` (or any file) the connection is encrypted; without `ca` the system's roots are trusted.
    """

    address: str
    ca: str = ""
    cert: str = ""
    key: str = ""
    tls: bool = False

    @property
    def encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.tls or bool(self.ca or self.cert)


@dataclasses.dataclass(frozen=True, slots=True)
class Targets:
    """What the file holds; `used` is the default target's name, or empty."""

    by_name: Mapping[str, Target] = dataclasses.field(default_factory=dict)
    used: str = ""

    def with_target(self, name: str, target: Target) -> Targets:
        return dataclasses.replace(self, by_name={**self.by_name, name: target})

    def without(self, name: str) -> Targets:
        rest = {other: target for other, target in self.by_name.items() if other != name}
        return Targets(rest, "" if self.used == name else self.used)


def path() -> pathlib.Path:
    """Where the targets are kept."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    home = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".config"  # noqa: PTH117 - "" is no path
    return home / "tms" / "targets.toml"


def load() -> Targets:
    """Reads the file; none is the same as an empty one. CliError names the file and the key that is wrong."""
    try:
        text = path().read_text(encoding="utf-8")
    except FileNotFoundError:
        return Targets()
    except (OSError, UnicodeDecodeError) as problem:
        raise errors.CliError(str(problem), field=str(path())) from None
    try:
        return parse(text)
    except (tomllib.TOMLDecodeError, ValueError) as problem:
        raise errors.CliError(
            str(problem),
            code=errors.Exit.INVALID,
            field=str(path()),
            remedy="Mend it, or remove it and add the targets again.",
        ) from None


def save(targets: Targets) -> None:
    """Replaces the file in one step."""
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A temporary file is its owner's alone (0600) from the start.
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, prefix=".targets-", delete=False, encoding="utf-8"
        ) as new:
            scratch = pathlib.Path(new.name)
            new.write(render(targets))
            new.flush()
            os.fsync(new.fileno())
        scratch.replace(file)
    except OSError as problem:
        raise errors.CliError(str(problem), field=str(file)) from None


def parse(text: str) -> Targets:
    """Reads TOML; ValueError names what is wrong."""
    tree = tomllib.loads(text)
    for key in tree:
        values.require_known(key, ("use", "targets"))
    by_name = {name: _target(name, table) for name, table in _table("targets", tree.get("targets", {})).items()}
    used = tree.get("use", "")
    if used and used not in by_name:
        raise ValueError(f"use: there is no target {used!r}")
    return Targets(by_name, used)


def render(targets: Targets) -> str:
    """The TOML that `parse` reads."""
    lines = [f"use = {_quoted(targets.used)}", ""] if targets.used else []
    for name, target in targets.by_name.items():
        lines.append(f"[targets.{_quoted(name)}]")
        given = {key: value for key, value in dataclasses.asdict(target).items() if value}
        lines += [f"{key} = {'true' if value is True else _quoted(value)}" for key, value in given.items()]
        lines.append("")
    return "\n".join(lines)


def resolve(wanted: str | None) -> Target:
    """The target of that name or address; without one the target in use, else the local default."""
    targets = load()
    wanted = wanted or targets.used
    if not wanted:
        return Target(DEFAULT_ADDRESS)
    if wanted in targets.by_name:
        return targets.by_name[wanted]
    if ":" in wanted:
        return Target(check_address(wanted))
    known = ", ".join(targets.by_name) or "none"
    raise errors.CliError(
        f"there is no target {wanted!r}",
        code=errors.Exit.NOT_FOUND,
        field="--target",
        remedy=f"Give HOST:PORT, or add it with `tmsctl target add {wanted} HOST:PORT`. Saved targets: {known}.",
    )


def check_address(address: str) -> str:
    """Answers the address if it is one; CliError otherwise."""
    found = _ADDRESS.fullmatch(address)
    if address.startswith("unix:") or (found and 0 < int(found[2]) < 65536):
        return address
    remedy = f"Write HOST:PORT, such as {DEFAULT_ADDRESS}; TLS is an option of `tmsctl target add`."
    raise errors.CliError(f"{address!r} is no address", code=errors.Exit.USAGE, field="address", remedy=remedy)


def check_name(name: str) -> str:
    """Answers the name if a target can be called so; CliError otherwise."""
    if _NAME.fullmatch(name):
        return name
    remedy = "Use 1 to 63 letters, digits, - and _, first a letter or digit."
    raise errors.CliError(f"{name!r} is no name for a target", code=errors.Exit.USAGE, field="name", remedy=remedy)


def _target(name: str, table: object) -> Target:
    where = f"targets.{name}"
    known = {field.name: type(field.default) for field in dataclasses.fields(Target)} | {"address": str}
    fields = _table(where, table)
    for key, value in fields.items():
        values.require_known(key, known, where)
        if type(value) is not known[key]:
            raise ValueError(f"{where}.{key}: write {'true or false' if known[key] is bool else 'text in quotes'}")
    if not fields.get("address"):
        raise ValueError(f"{where}: has no address")
    return Target(**fields)


def _table(where: str, table: object) -> dict[str, typing.Any]:
    if not isinstance(table, dict):
        raise ValueError(f"{where}: write a table")  # noqa: TRY004 - the file is wrong, not the program
    return table


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's; DEL alone needs one in TOML only.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

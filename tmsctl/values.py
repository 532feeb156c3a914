"""Decides how durations, sizes, models and labels are written. Pure: text in, values out, and back again.

Every parser raises ValueError with a sentence that says what to write instead.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import fractions
import re
from collections.abc import Iterable, Mapping

MAX_INT64 = 2**63 - 1
# google.protobuf.Duration ends here: about 10 000 years.
MAX_SECONDS = 315_576_000_000

_UNITS_US: Mapping[str, int] = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000}
_DURATION = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)(ms|d|h|m|s)")
_BINARY: Mapping[str, int] = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_SIZES: Mapping[str, int] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    **{unit.lower(): factor for unit, factor in _BINARY.items()},
}
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,15})?) ?([A-Za-z]*)")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_MODEL_KEYS = ("name", "uri", "framework", "bytes", "config")


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """One --model as written. `config` is a file with JSON, or empty."""

    name: str
    uri: str
    framework: str = ""
    declared_bytes: int = 0
    config: str = ""


def parse_duration(text: str) -> dt.timedelta:
    """Reads ``90s``, ``10m``, ``2h30m``, ``1.5h``, ``250ms``, ``7d``; units go from great to small, each once."""
    parts = _DURATION.findall(text)
    units = [unit for _, unit in parts]
    ordered = sorted(set(units), key=list(_UNITS_US).index)
    if not parts or "".join(number + unit for number, unit in parts) != text or units != ordered:
        raise ValueError(f"{text!r} is no duration; write one like 90s, 10m or 2h30m (units d, h, m, s, ms)")
    micros = sum((fractions.Fraction(number) * _UNITS_US[unit] for number, unit in parts), fractions.Fraction(0))
    if micros.denominator != 1:
        raise ValueError(f"{text!r} is finer than a microsecond")
    if micros > MAX_SECONDS * 1_000_000:
        raise ValueError(f"{text!r} is longer than {MAX_SECONDS} s; leave it out for no limit")
    return dt.timedelta(microseconds=int(micros))


def format_duration(span: dt.timedelta) -> str:
    """The shortest exact text that `parse_duration` reads; `span` is not negative."""
    left = span // dt.timedelta(microseconds=1)
    said = []
    for unit in ("d", "h", "m"):
        whole, left = divmod(left, _UNITS_US[unit])
        said += [f"{whole}{unit}"] if whole else []
    seconds = f"{left // 1_000_000}.{left % 1_000_000:06}".rstrip("0").rstrip(".")
    return "".join([*said, f"{seconds}s"] if left or not said else said)


def parse_size(text: str) -> int:
    """Reads ``512MiB``, ``4GB``, ``1.5GiB`` or plain bytes, in any case of letters; answers bytes."""
    found = _SIZE.fullmatch(text.strip())
    factor = _SIZES.get(found[2].lower()) if found else None
    if found is None or factor is None:
        raise ValueError(f"{text!r} is no size; write bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB")
    size = fractions.Fraction(found[1]) * factor
    if size.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if size > MAX_INT64:
        raise ValueError(f"{text!r} is more than {MAX_INT64} bytes")
    return int(size)


def format_size_exact(size_bytes: int) -> str:
    """The shortest exact text that `parse_size` reads."""
    for unit, factor in _BINARY.items():
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def format_size(size_bytes: int) -> str:
    """For people: three digits at most, such as ``1.5 GiB``."""
    for unit, factor in _BINARY.items():
        if size_bytes >= factor:
            return f"{size_bytes / factor:.{0 if size_bytes >= 100 * factor else 1}f} {unit}"
    return f"{size_bytes} B"


def parse_cpus(text: str) -> int:
    """Reads a number of processors such as ``2`` or ``0.5``; answers thousandths."""
    found = re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no number of processors; write one like 2 or 0.5, in thousandths at the finest")
    return int(fractions.Fraction(found[0]) * 1000)


def parse_model(text: str) -> Model:
    """Reads ``NAME=URI`` or ``name=…,uri=…``, either followed by ``,framework=…``, ``,bytes=…`` or ``,config=@file``.

    A comma is part of a value unless a word and ``=`` follow it. A model that is called like one of the keys has to be written in the long form.
    """
    head, equals, _ = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} lacks a URI; write NAME=URI, or name=…,uri=…")
    if head not in _MODEL_KEYS:
        text = f"name={head},uri={text[len(head) + 1 :]}"
    pairs = [part.partition("=") for part in re.split(r",(?=[a-z_]+=)", text)]
    for key, _, _ in pairs:
        require_known(key, _MODEL_KEYS)
    given = {key: value for key, _, value in pairs}
    if len(given) != len(pairs):
        raise ValueError(f"{text!r} says a key twice")
    size = parse_size(given["bytes"]) if "bytes" in given else 0
    named = Model(given.get("name", ""), given.get("uri", ""), given.get("framework", ""), size, _file(given))
    return _checked(named, text)


def format_model(model: Model) -> str:
    """The long form that `parse_model` reads."""
    said = [f"name={model.name}", f"uri={model.uri}"]
    said += [f"framework={model.framework}"] if model.framework else []
    said += [f"bytes={format_size_exact(model.declared_bytes)}"] if model.declared_bytes else []
    said += [f"config=@{model.config}"] if model.config else []
    return ",".join(said)


def parse_label(text: str) -> tuple[str, str]:
    """Reads ``key=value``; the value may be empty."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} is no label; write key=value")
    return key, value


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Reads many ``key=value``; the last one of a key counts."""
    return dict(parse_label(text) for text in texts)


def require_known(key: str, known: Iterable[str], where: str = "") -> None:
    """Raises ValueError that names an unknown key, and the nearest known one or all of them."""
    names = list(known)
    if key in names:
        return
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    raise ValueError(f"{where + ': ' if where else ''}unknown key {key!r}; {hint}")


def clean(text: str) -> str:
    """Shows control characters, tabs aside, instead of sending them to the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _checked(model: Model, text: str) -> Model:
    if not model.name or not model.uri:
        raise ValueError(f"{text!r} lacks a {'uri' if model.name else 'name'}; write NAME=URI, or name=…,uri=…")
    return model


def _file(given: Mapping[str, str]) -> str:
    config = given.get("config", "")
    if config and (not config.startswith("@") or config == "@"):
        raise ValueError(f"config={config} is no file; write config=@FILE")
    return config[1:]

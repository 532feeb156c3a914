"""Decides what lease.yaml may say: reads it into a CreateLeaseRequest. Sends nothing; refuses what it does not know.

examples/lease.yaml shows every key.
"""

from __future__ import annotations

import datetime as dt
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import yaml

from protos.tms.v1 import common_pb2, lease_pb2
from tmsctl import errors, scaling, values

LARGEST_BYTES = 2**20

TOP_KEYS = (
    "namespace",
    "name",
    "models",
    "pool",
    "dedicated",
    "times",
    "priority",
    "labels",
    "sharing",
    "parent",
    "request_id",
    "autoscaling",
)
MODEL_KEYS = ("name", "uri", "framework", "bytes", "config")
DEDICATED_KEYS = ("command", "image", "profile", "gpus", "cpus", "memory", "replicas")
TIMES_KEYS = ("hold", "window", "max_lifetime", "pending_timeout", "renewal")
SHARING_KEYS = ("share_with", "not_with", "exclusive")
AUTOSCALING_KEYS = ("min_replicas", "max_replicas", "metrics", "behavior")
METRIC_KEYS = ("kind", "target", "quantile")
BEHAVIOR_KEYS = ("up_window", "down_window", "max_step_up", "max_step_down", "period")
RENEWALS: Mapping[str, lease_pb2.Renewal.ValueType] = {
    "on_activity": lease_pb2.RENEWAL_ON_ACTIVITY,
    "keepalive": lease_pb2.RENEWAL_KEEPALIVE,
    "manual": lease_pb2.RENEWAL_MANUAL,
}

Value = TypeVar("Value")


def load(file: str) -> lease_pb2.CreateLeaseRequest:
    """Reads a file, or standard input for ``-``. CliError names the key that is wrong."""
    if file == "-":
        return parse(sys.stdin.read(LARGEST_BYTES + 1), pathlib.Path())
    return parse(read("--file", pathlib.Path(file)), pathlib.Path(file).parent)


def read(field: str, file: pathlib.Path) -> str:
    """The text of a small file; CliError names `field`."""
    try:
        with file.open(encoding="utf-8") as source:
            text = source.read(LARGEST_BYTES + 1)
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        raise errors.CliError(f"cannot read {file}: {problem}", code=errors.Exit.USAGE, field=field) from None
    if len(text) > LARGEST_BYTES:
        raise errors.CliError(f"{file} is larger than {LARGEST_BYTES} bytes", code=errors.Exit.INVALID, field=field)
    return text


def read_config(field: str, file: pathlib.Path) -> str:
    """A model's configuration: the text of a file that holds one JSON object."""
    text = read(field, file)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise _wrong(field, f"{file} is not JSON: {problem}") from None
    if not isinstance(tree, dict):
        raise _wrong(field, f"{file} does not hold a JSON object")
    return text


def parse(text: str, directory: pathlib.Path) -> lease_pb2.CreateLeaseRequest:
    """Reads YAML; files that it names are relative to `directory`."""
    top = _Section("", _tree(text), TOP_KEYS)
    request = lease_pb2.CreateLeaseRequest(
        namespace=top.text("namespace"),
        name=top.text("name"),
        priority=top.integer("priority"),
        labels=top.labels("labels"),
        parent_id=top.text("parent"),
        request_id=top.text("request_id"),
    )
    request.models.extend(_model(section, directory) for section in top.sections("models", MODEL_KEYS))
    _place(request, top)
    if "times" in top:
        request.times.CopyFrom(_times(top.section("times", TIMES_KEYS)))
    if "sharing" in top:
        request.sharing.CopyFrom(_sharing(top.section("sharing", SHARING_KEYS)))
    if "autoscaling" in top:
        request.autoscaling.CopyFrom(_autoscaling(top.section("autoscaling", AUTOSCALING_KEYS)))
    return request


def _model(section: _Section, directory: pathlib.Path) -> common_pb2.ModelReference:
    return common_pb2.ModelReference(
        name=section.text("name"),
        uri=section.text("uri"),
        framework=section.text("framework"),
        declared_bytes=section.size("bytes"),
        config_override=section.config("config", directory),
    )


def _place(request: lease_pb2.CreateLeaseRequest, top: _Section) -> None:
    if "pool" in top and "dedicated" in top:
        raise _wrong("dedicated", "a lease has a pool or a dedicated worker, not both")
    if "pool" in top:
        request.pool.pool = top.text("pool")
    if "dedicated" in top:
        section = top.section("dedicated", DEDICATED_KEYS)
        if "command" in section and "image" in section:
            raise _wrong("dedicated.image", "a worker has a command or an image, not both")
        request.dedicated.CopyFrom(_dedicated(section))


def _dedicated(section: _Section) -> lease_pb2.DedicatedPlacement:
    reserved = common_pb2.Resources(
        gpus=section.integer("gpus"), cpu_milli=section.cpus("cpus"), memory_bytes=section.size("memory")
    )
    worker = common_pb2.WorkerSpec(resources=reserved, profile=section.text("profile"))
    if "command" in section:
        worker.command = section.text("command")
    if "image" in section:
        worker.image = section.text("image")
    return lease_pb2.DedicatedPlacement(worker=worker, replicas=section.integer("replicas"))


def _times(section: _Section) -> lease_pb2.LeaseTimes:
    times = lease_pb2.LeaseTimes()
    for key, span in (
        ("hold", times.hold),
        ("window", times.activity_window),
        ("max_lifetime", times.max_lifetime),
        ("pending_timeout", times.pending_timeout),
    ):
        if key in section:
            span.FromTimedelta(section.duration(key))
    if "renewal" in section:
        times.renewal = section.choice("renewal", RENEWALS)
    return times


def _autoscaling(section: _Section) -> lease_pb2.Autoscaling:
    grows = lease_pb2.Autoscaling(
        min_replicas=section.integer("min_replicas"), max_replicas=section.integer("max_replicas")
    )
    grows.metrics.extend(_metric(each) for each in section.sections("metrics", METRIC_KEYS))
    if "behavior" in section:
        behavior = section.section("behavior", BEHAVIOR_KEYS)
        grows.behavior.max_step_up = behavior.integer("max_step_up")
        grows.behavior.max_step_down = behavior.integer("max_step_down")
        for key, span in (
            ("up_window", grows.behavior.scale_up_window),
            ("down_window", grows.behavior.scale_down_window),
            ("period", grows.behavior.period),
        ):
            if key in behavior:
                span.FromTimedelta(behavior.duration(key))
    return grows


def _metric(section: _Section) -> lease_pb2.ScalingMetric:
    try:
        return scaling.metric(section.text("kind"), section.word("target"), section.text("quantile"))
    except ValueError as problem:
        raise _wrong(section.where, str(problem)) from None


def _sharing(section: _Section) -> lease_pb2.Sharing:
    return lease_pb2.Sharing(
        share_with=section.texts("share_with"),
        not_with=section.texts("not_with"),
        exclusive=section.flag("exclusive"),
    )


class _Section:
    """A mapping of the file; knows where it stands, what it may hold, and answers values of the right type."""

    def __init__(self, where: str, tree: object, known: tuple[str, ...]) -> None:
        self.where = where
        if not isinstance(tree, dict):
            raise _wrong(where or "file", "write a mapping of keys to values")
        for key in tree:
            try:
                values.require_known(str(key), known)
            except ValueError as problem:
                raise _wrong(self._path(str(key)), str(problem)) from None
        self._tree = tree

    def __contains__(self, key: str) -> bool:
        return self._tree.get(key) is not None

    def text(self, key: str) -> str:
        return self._typed(key, str, "", "write text; put it in quotes if it looks like a number")

    def word(self, key: str) -> str:
        """Text, or a number as it is written."""
        given = self._tree.get(key)
        if isinstance(given, bool) or not isinstance(given, (str, int, float)):
            raise _wrong(self._path(key), "write a number, or text such as 20ms")
        return str(given)

    def integer(self, key: str) -> int:
        number = self._typed(key, int, 0, "write a whole number")
        if isinstance(number, bool) or not -(2**31) <= number < 2**31:
            raise _wrong(self._path(key), "write a whole number of at most 32 bits")
        return number

    def flag(self, key: str) -> bool:
        return self._typed(key, bool, False, "write true or false")  # noqa: FBT003 - the default of a flag

    def texts(self, key: str) -> list[str]:
        listed = self._typed(key, list, [], "write a list")
        for index, each in enumerate(listed):
            if not isinstance(each, str):
                raise _wrong(f"{self._path(key)}[{index}]", "write text")
        return listed

    def duration(self, key: str) -> dt.timedelta:
        return self._parsed(key, values.parse_duration)

    def size(self, key: str) -> int:
        return self._parsed(key, values.parse_size) if key in self else 0

    def cpus(self, key: str) -> int:
        return self._parsed(key, values.parse_cpus) if key in self else 0

    def choice(self, key: str, choices: Mapping[str, Value]) -> Value:
        word = self.text(key)
        if word not in choices:
            raise _wrong(self._path(key), f"{word!r} is not one of {', '.join(choices)}")
        return choices[word]

    def labels(self, key: str) -> dict[str, str]:
        pairs = self._typed(key, dict, {}, "write a mapping of keys to texts")
        for name, value in pairs.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise _wrong(f"{self._path(key)}.{name}", "write text; put it in quotes if it looks like a number")
        return pairs

    def config(self, key: str, directory: pathlib.Path) -> str:
        given = self._tree.get(key)
        if given is None:
            return ""
        if isinstance(given, str) and given.startswith("@"):
            return read_config(self._path(key), directory / given[1:])
        if not isinstance(given, dict):
            raise _wrong(self._path(key), 'write a mapping, or "@FILE" with JSON')
        try:
            return json.dumps(given, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as problem:
            raise _wrong(self._path(key), f"cannot be written as JSON: {problem}") from None

    def section(self, key: str, known: tuple[str, ...]) -> _Section:
        return _Section(self._path(key), self._tree.get(key), known)

    def sections(self, key: str, known: tuple[str, ...]) -> Iterator[_Section]:
        for index, each in enumerate(self._typed(key, list, [], "write a list")):
            yield _Section(f"{self._path(key)}[{index}]", each, known)

    def _path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _typed(self, key: str, kind: type[Value], default: Value, remedy: str) -> Value:
        given = self._tree.get(key)
        if given is None:
            return default
        if not isinstance(given, kind):
            raise _wrong(self._path(key), remedy)
        return given

    def _parsed(self, key: str, parser: Callable[[str], Value]) -> Value:
        given: Any = self._tree[key]
        try:
            return parser(str(given) if isinstance(given, (str, int, float)) and not isinstance(given, bool) else "")
        except ValueError as problem:
            raise _wrong(self._path(key), str(problem)) from None


class _Loader(yaml.SafeLoader):
    """YAML's safe subset; a key that is said twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[str] = set()
        for key, _ in node.value:
            said = str(key.value)
            if isinstance(key, yaml.ScalarNode) and said in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {said!r} is said twice", problem_mark=key.start_mark)
            seen.add(said)
        return super().construct_mapping(node, deep)


def _tree(text: str) -> object:
    if len(text) > LARGEST_BYTES:
        raise _wrong("file", f"larger than {LARGEST_BYTES} bytes")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - the loader is a safe one
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise _wrong("file", f"is not YAML: {problem}") from None


def _wrong(field: str, message: str) -> errors.CliError:
    return errors.CliError(message, code=errors.Exit.INVALID, field=field)

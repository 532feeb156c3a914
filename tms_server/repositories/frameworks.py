"""Which framework executes a model: as its configuration says, else as its files are named. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import text_format

from protos.inference.v2 import model_config_pb2
from tms_server.model import errors, lease, source
from tms_server.repositories import listing

_BY_BACKEND: Mapping[str, source.Framework] = {
    each.value: each for each in source.Framework if each is not source.Framework.ENSEMBLE
}
_BY_PLATFORM = {
    "onnxruntime_onnx": source.Framework.ONNXRUNTIME,
    "tensorrt_plan": source.Framework.TENSORRT,
    "pytorch_libtorch": source.Framework.PYTORCH,
    "tensorflow_graphdef": source.Framework.TENSORFLOW,
    "tensorflow_savedmodel": source.Framework.TENSORFLOW,
    "ensemble": source.Framework.ENSEMBLE,
}
_BY_FILE = {
    "model.onnx": source.Framework.ONNXRUNTIME,
    "model.plan": source.Framework.TENSORRT,
    "model.py": source.Framework.PYTHON,
    "model.pt": source.Framework.PYTORCH,
    "model.savedmodel": source.Framework.TENSORFLOW,
    "model.graphdef": source.Framework.TENSORFLOW,
}


def detect(found: listing.Listing) -> source.Framework | None:
    """What the model itself says. Parses for long: not on the event loop.

    InvalidField (``uri``): the configuration cannot be read. Unimplemented: it names a backend that this server does not
    know.
    """
    return _from_config(found.config) or _from_files(file.path for file in found.files)


def decide(reference: lease.ModelReference, detected: source.Framework | None) -> source.Framework:
    """The model's framework; InvalidField (``framework``): it cannot be told, or is not what was said."""
    said = reference.framework
    framework = detected or said
    if framework is None:
        known = ", ".join(each.value for each in source.Framework)
        raise errors.InvalidField("framework", f"neither {listing.CONFIG} nor the files tell it; say one of {known}")
    if said not in {None, framework}:
        # A wrong framework would put the model on a worker with the wrong neighbours.
        raise errors.InvalidField("framework", f"the model itself says {framework.value}; leave it out or say so too")
    return framework


def _from_config(text: bytes | None) -> source.Framework | None:
    if text is None:
        return None
    config = model_config_pb2.ModelConfig()
    try:
        # The worker judges the whole of it; fields of later versions are no reason to refuse here.
        text_format.Parse(text.decode(), config, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as failure:
        raise errors.InvalidField("uri", f"{listing.CONFIG} cannot be read: {failure}") from failure
    return _known(config.backend, _BY_BACKEND, "backend") or _known(config.platform, _BY_PLATFORM, "platform")


def _known(name: str, table: Mapping[str, source.Framework], field: str) -> source.Framework | None:
    if name and name not in table:
        raise errors.Unimplemented(f"uri: {listing.CONFIG} asks for the {field} {name!r}; known are {', '.join(table)}")
    return table.get(name)


def _from_files(paths: Iterable[str]) -> source.Framework | None:
    """By the files right below the version directories, if they agree."""
    parts = [path.split("/") for path in paths]
    found = {_BY_FILE[each[1]] for each in parts if len(each) > 1 and each[0].isdigit() and each[1] in _BY_FILE}
    return found.pop() if len(found) == 1 else None

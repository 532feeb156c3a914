"""The page of the gRPC API, from the comments of the .proto files."""

from __future__ import annotations

import html
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from google.protobuf import descriptor_pb2 as pb

from docs.pages import markdown
from protos import generate as protos_generate

SOURCES = tuple(f"protos/tms/v1/{name}.proto" for name in ("lease", "pool", "common", "agent"))

# A comment is found by its path in the descriptor: numbers of fields and positions in turn.
Path = tuple[int, ...]
MESSAGE, ENUM, SERVICE = 4, 5, 6
FIELD, NESTED, VALUE, METHOD = 2, 3, 2, 2

_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in pb.FieldDescriptorProto.Type.items()}


def text() -> str:
    """The page of the control plane's gRPC API."""
    lines = ["# The gRPC API", "", "Package `tms.v1`; the sources are in `protos/tms/v1/`.", ""]
    for file in _described():
        lines += _file(file)
    return "\n".join(lines).rstrip() + "\n"


def _described() -> Sequence[pb.FileDescriptorProto]:
    import grpc_tools  # noqa: PLC0415 - a development tool, absent where only a program is installed
    from grpc_tools import protoc  # noqa: PLC0415 - the same

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "set"
        flags = [f"-I{protos_generate.ROOT}", f"-I{well_known}", f"--descriptor_set_out={out}", "--include_source_info"]
        if protoc.main(["protoc", *flags, *SOURCES]) != 0:
            raise RuntimeError("protoc refused a source; its message is above")
        files = {file.name: file for file in pb.FileDescriptorSet.FromString(out.read_bytes()).file}
    return [files[name] for name in SOURCES]


def _file(file: pb.FileDescriptorProto) -> Iterator[str]:
    said = {tuple(each.path): _text(each) for each in file.source_code_info.location}
    yield from (f"## {pathlib.PurePath(file.name).name}", "", said.get((12,), ""), "")
    for index, service in enumerate(file.service):
        yield from _service(service, (SERVICE, index), said)
    for index, message in enumerate(file.message_type):
        yield from _message(message, (MESSAGE, index), said)
    for index, enum in enumerate(file.enum_type):
        yield from _enum(enum, (ENUM, index), said)


def _service(service: pb.ServiceDescriptorProto, path: Path, said: Mapping[Path, str]) -> Iterator[str]:
    yield from _heading("service", service.name, said.get(path, ""))
    yield from ("| call | takes | answers | meaning |", "| --- | --- | --- | --- |")
    for index, method in enumerate(service.method):
        takes = "stream " * method.client_streaming + _link(method.input_type)
        answers = "stream " * method.server_streaming + _link(method.output_type)
        yield f"| `{method.name}` | {takes} | {answers} | {markdown.cell(said.get((*path, METHOD, index), ''))} |"
    yield ""


def _message(message: pb.DescriptorProto, path: Path, said: Mapping[Path, str]) -> Iterator[str]:
    yield from _heading("message", message.name, said.get(path, ""))
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    if message.field:
        yield from ("| field | type | meaning |", "| --- | --- | --- |")
    for index, field in enumerate(message.field):
        meaning = said.get((*path, FIELD, index), "")
        choice = f"One of `{message.oneof_decl[field.oneof_index].name}`. " if field.HasField("oneof_index") else ""
        yield f"| `{field.name}` | {_type(field, maps)} | {markdown.cell(choice + meaning)} |"
    yield ""
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, (*path, NESTED, index), said)


def _enum(enum: pb.EnumDescriptorProto, path: Path, said: Mapping[Path, str]) -> Iterator[str]:
    yield from _heading("enum", enum.name, said.get(path, ""))
    yield from ("| value | number | meaning |", "| --- | --- | --- |")
    for index, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {markdown.cell(said.get((*path, VALUE, index), ''))} |"
    yield ""


def _heading(kind: str, name: str, meaning: str) -> Iterator[str]:
    yield from (f'### <a id="{name.lower()}"></a>{kind} {name}', "")
    if meaning:
        yield from (meaning, "")


def _type(field: pb.FieldDescriptorProto, maps: Mapping[str, pb.DescriptorProto]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry:
        return f"map of {_type(entry.field[0], {})} to {_type(entry.field[1], {})}"
    name = _link(field.type_name) if field.type_name else _SCALARS[field.type]
    return f"repeated {name}" if field.label == pb.FieldDescriptorProto.LABEL_REPEATED else name


def _link(full_name: str) -> str:
    name = full_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if full_name.startswith(".tms.v1.") else f"`{full_name.lstrip('.')}`"


def _text(location: pb.SourceCodeInfo.Location) -> str:
    # A comment above a file's syntax line is its heading; it stands detached when an empty line follows.
    parts = [*location.leading_detached_comments, location.leading_comments, location.trailing_comments]
    return html.escape(" ".join(line.strip() for part in parts for line in part.splitlines()).strip(), quote=False)

"""Tells whether a new version of the protos can still talk to an old one.

Breaking is what the encoding or a compiled client would notice: a removed or renumbered field, another type or label, a
removed service, call, message or enum value, a changed call. Additions are compatible.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from google.protobuf import descriptor_pb2 as pb


def compile_set(root: pathlib.Path, names: Sequence[str]) -> pb.FileDescriptorSet:
    """Compiles sources (named relative to `root`) with their imports; RuntimeError when one does not compile."""
    import grpc_tools  # a development tool: absent where only a program is installed
    from grpc_tools import protoc

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "set"
        flags = [f"-I{root}", f"-I{well_known}", f"--descriptor_set_out={out}", "--include_imports"]
        if protoc.main(["protoc", *flags, *names]) != 0:
            raise RuntimeError(f"protoc refused {', '.join(names)}")
        return pb.FileDescriptorSet.FromString(out.read_bytes())


def breaking_changes(old: pb.FileDescriptorSet, new: pb.FileDescriptorSet) -> list[str]:
    """Sentences, one for each change that an old peer would trip over; empty when compatible."""
    before, after = dict(_facts(old)), dict(_facts(new))
    return [
        f"{name}: was {fact}, is {after.get(name, 'gone')}" for name, fact in before.items() if after.get(name) != fact
    ]


def _facts(files: pb.FileDescriptorSet) -> Iterator[tuple[str, str]]:
    for file in files.file:
        for message in file.message_type:
            yield from _message(f"{file.package}.{message.name}", message)
        for enum in file.enum_type:
            yield from _enum(f"{file.package}.{enum.name}", enum)
        for service in file.service:
            for method in service.method:
                streams = f"{'stream ' * method.client_streaming}{method.input_type}"
                answers = f"{'stream ' * method.server_streaming}{method.output_type}"
                yield f"{file.package}.{service.name}/{method.name}", f"{streams} -> {answers}"


def _message(path: str, message: pb.DescriptorProto) -> Iterator[tuple[str, str]]:
    yield path, "message"
    for field in message.field:
        kind = field.type_name or pb.FieldDescriptorProto.Type.Name(field.type)
        label = pb.FieldDescriptorProto.Label.Name(field.label)
        yield f"{path}.{field.name}", f"{label} {kind} = {field.number}"
    for nested in message.nested_type:
        yield from _message(f"{path}.{nested.name}", nested)
    for enum in message.enum_type:
        yield from _enum(f"{path}.{enum.name}", enum)


def _enum(path: str, enum: pb.EnumDescriptorProto) -> Iterator[tuple[str, str]]:
    for value in enum.value:
        yield f"{path}.{value.name}", f"enum value {value.number}"

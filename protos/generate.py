"""Generates the stubs beside their sources; run from anywhere as ``python -m protos.generate [DIRECTORY]``."""

from __future__ import annotations

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def sources() -> list[str]:
    """Names of all .proto files, relative to the repository root, sorted."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos").rglob("*.proto"))


def generate(into: pathlib.Path = ROOT) -> None:
    """Writes modules and type stubs below `into`; raises RuntimeError when a source does not compile."""
    import grpc_tools  # a development tool: absent where only a program is installed
    from grpc_tools import protoc

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    programs = pathlib.Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{kind}={programs}/protoc-gen-{kind}" for kind in ("mypy", "mypy_grpc")]
    outputs = [f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    flags = [f"-I{ROOT}", f"-I{well_known}", *plugins, *outputs]
    if protoc.main(["protoc", *flags, *sources()]) != 0:
        raise RuntimeError("protoc refused a source; its message is above")


if __name__ == "__main__":
    generate(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)

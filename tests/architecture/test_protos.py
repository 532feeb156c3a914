"""The stubs are what the sources say; a release's clients can still talk to this version."""

from __future__ import annotations

import io
import pathlib
import re
import subprocess
import tarfile

import pytest
from google.protobuf import descriptor_pb2

from protos import compatibility, generate

ROOT = generate.ROOT


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    into = tmp_path_factory.mktemp("stubs")
    generate.generate(into)
    return into


def test_stubs_are_what_the_sources_say(regenerated: pathlib.Path) -> None:
    fresh = {path.relative_to(regenerated): path.read_text() for path in regenerated.rglob("*_pb2*")}
    kept = {
        path.relative_to(ROOT): path.read_text() for path in (ROOT / "protos").rglob("*_pb2*") if path.suffix != ".pyc"
    }
    assert fresh == kept, "run `make protos`"


def test_every_public_field_and_call_has_its_meaning_said() -> None:
    """Messages of tms.v1 are the API reference: a call always carries a comment, a message either is explained or short."""
    lease = (ROOT / "protos/tms/v1/lease.proto").read_text()
    service = re.search(r"service Leases \{(.*?)\n\}", lease, re.DOTALL)
    assert service is not None
    calls = re.findall(r"((?:  //[^\n]*\n)*)  rpc (\w+)", service.group(1))
    assert [name for comment, name in calls if not comment] == []


def test_no_release_is_broken(tmp_path: pathlib.Path) -> None:
    new = compatibility.compile_set(ROOT, generate.sources())
    old = _sources_of_last_release(tmp_path)
    baseline = new if old is None else compatibility.compile_set(old, _names_below(old))
    assert compatibility.breaking_changes(baseline, new) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("message M { int64 a = 1; }", "message M { int64 a = 2; }"),
        ("message M { int64 a = 1; }", "message M { string a = 1; }"),
        ("message M { int64 a = 1; }", "message M { repeated int64 a = 1; }"),
        ("message M { int64 a = 1; }", "message M {}"),
        ("enum E { A = 0; B = 1; }", "enum E { A = 0; }"),
        ("message M {} service S { rpc C(M) returns (M); }", "message M {} service S { rpc C(M) returns (stream M); }"),
        ("message M {} service S { rpc C(M) returns (M); }", "message M {} service S {}"),
    ],
)
def test_breaking_changes_are_seen(tmp_path: pathlib.Path, old: str, new: str) -> None:
    assert compatibility.breaking_changes(_compiled(tmp_path / "old", old), _compiled(tmp_path / "new", new))


def test_additions_are_no_breaking_changes(tmp_path: pathlib.Path) -> None:
    old = _compiled(tmp_path / "old", "message M { int64 a = 1; } enum E { A = 0; }")
    new = _compiled(tmp_path / "new", "message M { int64 a = 1; int64 b = 2; } enum E { A = 0; B = 1; } message N {}")
    assert compatibility.breaking_changes(old, new) == []


def _compiled(root: pathlib.Path, body: str) -> descriptor_pb2.FileDescriptorSet:
    root.mkdir()
    (root / "x.proto").write_text(f'syntax = "proto3"; package x; {body}')
    return compatibility.compile_set(root, ["x.proto"])


def _sources_of_last_release(into: pathlib.Path) -> pathlib.Path | None:
    describe = ["git", "describe", "--tags", "--match=v*", "--abbrev=0"]
    tag = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    if tag.returncode != 0:
        return None
    archive = subprocess.run(
        ["git", "archive", tag.stdout.strip(), "protos"], cwd=ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as sources:
        sources.extractall(into, filter="data")
    return into


def _names_below(root: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.proto"))

from __future__ import annotations

import os
import pathlib
import stat

import hypothesis
import pytest
from hypothesis import strategies as st

from sidecar import errors, paths, values

parts = st.sampled_from(["..", ".", "", "a", "b", "link", "out", "/", "\\", "\0", "a\\b"])
wild = st.lists(parts, max_size=6).map("/".join)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "model" / "a").mkdir(parents=True)
    (root / "model" / "a" / "b").write_text("inside")
    (root / "model" / "link").symlink_to("a")
    (root / "model" / "out").symlink_to("..")
    (root / "b").write_text("outside")
    return root


@hypothesis.given(wild)
def test_no_path_reads_outside_its_root(tree: pathlib.Path, path: str) -> None:
    if not paths.is_relative(path):
        return
    try:
        descriptor = paths.open_beneath(tree / "model", path)
    except (errors.ModelFailed, OSError):
        return
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            assert os.read(descriptor, 100) == b"inside"
    finally:
        os.close(descriptor)


def test_a_link_inside_is_followed_and_one_outside_is_refused(tree: pathlib.Path) -> None:
    with os.fdopen(paths.open_beneath(tree / "model", "link/b")) as file:
        assert file.read() == "inside"
    with pytest.raises(errors.ModelFailed, match="leads outside"):
        paths.open_beneath(tree / "model", "out/b")


def test_a_model_may_be_reached_through_a_link(tree: pathlib.Path) -> None:
    (tree / "alias").symlink_to("model")

    with os.fdopen(paths.open_beneath(tree / "alias", "a/b")) as file:
        assert file.read() == "inside"


@hypothesis.given(st.text(max_size=20))
def test_a_name_is_one_directory_of_its_own(name: str) -> None:
    if paths.is_name(name):
        assert pathlib.PurePosixPath("/r", name).parent == pathlib.PurePosixPath("/r")
        assert name not in {".", ".."}


@hypothesis.given(wild)
def test_a_relative_path_stays_below_every_root(path: str) -> None:
    if paths.is_relative(path):
        assert os.path.normpath(f"/root/{path}").startswith("/root/")


@pytest.mark.parametrize(
    ("name", "files", "reason"),
    [
        ("../x", ["a"], "InvalidName"),
        ("", ["a"], "InvalidName"),
        ("x", ["../a"], "InvalidPath"),
        ("x", ["/etc/passwd"], "InvalidPath"),
        ("x", ["a", "a"], "InvalidPath"),
        ("x", ["a", "a/b"], "InvalidPath"),
    ],
)
def test_a_model_that_could_escape_or_clash_fails_for_good(name: str, files: list[str], reason: str) -> None:
    model = values.Model(
        name=name,
        uri="file:///x",
        files=tuple(values.SourceFile(path=path, size_bytes=1) for path in files),
        source_digest="d",
    )

    with pytest.raises(errors.ModelFailed) as caught:
        paths.check(model)

    assert caught.value.failure.reason == reason
    assert not caught.value.failure.retryable

"""Models that came with their load calls: bounded, confined, and gone with the process that held them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from gpu_worker.engine import border
from gpu_worker.repository import override


@pytest.fixture(autouse=True)
def scratch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("paths", [("1/x", "1//x"), ("1/x", "./1/x"), ("1", "1/x"), ("1/x", "1"), ("a" * 300,)])
def test_files_that_cannot_be_beside_each_other_are_refused(paths: tuple[str, ...], scratch: pathlib.Path) -> None:
    store = override.Store()
    with pytest.raises(border.InferenceError, match=r"file '.*' of model 'm' cannot be written") as caught:
        store.write("m", dict.fromkeys(paths, b"x"))
    assert str(scratch) not in caught.value.message
    assert list(scratch.glob("*/*")) == []
    store.close()


def test_too_much_is_refused_before_anything_is_written(scratch: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(override, "_MAX_BYTES", 10)
    store = override.Store()
    with pytest.raises(border.InferenceError, match="have 11 bytes: send at most 10"):
        store.write("m", {"a": b"x" * 5, "b": b"x" * 6})
    with pytest.raises(border.InferenceError, match="send at most 1000"):
        store.write("m", {str(number): b"" for number in range(1001)})
    assert list(scratch.iterdir()) == []


def test_only_what_the_dead_left_is_swept(scratch: pathlib.Path) -> None:
    living = override.Store()
    kept = living.write("m", {"1/model.onnx": b"x"})
    program = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from gpu_worker.repository import override\n"
        "override.Store().write('m', {'1/model.onnx': b'x'})\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(scratch)])
    (scratch / "tms-models-file").write_text("")
    (scratch / "tms-models-link").symlink_to(kept.path)
    (scratch / "other").mkdir()
    assert len(list(scratch.glob("tms-models-*/model-*"))) == 2
    override.Store().sweep()
    assert list(scratch.glob("tms-models-*/model-*")) == [kept.path]
    assert {path.name for path in scratch.iterdir()} == {
        kept.path.parent.name,
        "tms-models-file",
        "tms-models-link",
        "other",
    }
    living.close()
    assert not kept.path.parent.exists()


def test_a_directory_that_was_swept_in_the_moment_of_its_making_is_made_again(
    scratch: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = override._taken
    seen: list[pathlib.Path] = []

    def swept_at_first(root: pathlib.Path) -> int | None:
        seen.append(root)
        if len(seen) == 1:
            override.remove(root)
        return taken(root)

    monkeypatch.setattr(override, "_taken", swept_at_first)
    store = override.Store()
    directory = store.write("m", {"x": b"1"})
    assert directory.path.parent == seen[1] != seen[0]
    store.close()

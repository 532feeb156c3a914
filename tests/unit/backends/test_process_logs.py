"""Reading logs that grow and are turned over."""

from __future__ import annotations

import pathlib
import tempfile

from hypothesis import given
from hypothesis import strategies as st

from tms_server.backends.processes import logs


def append(path: pathlib.Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_log_that_is_not_there_is_empty(tmp_path: pathlib.Path) -> None:
    reader = logs.Reader(tmp_path / "log")
    assert reader.tail(5) == []
    assert reader.more() == []
    assert not logs.turn_over(tmp_path / "log", 0)


def test_the_tail_is_the_last_complete_lines_and_more_goes_on_from_there(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    append(log, "one\ntwo\nthree\nfo")
    reader = logs.Reader(log)
    assert reader.tail(2) == ["two", "three"]
    assert reader.more() == []
    append(log, "ur\nfive\n")
    assert reader.more() == ["four", "five"]


def test_the_tail_goes_back_into_what_was_turned_over(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    append(log, "one\ntwo\n")
    assert not logs.turn_over(log, 8)
    assert logs.turn_over(log, 7)
    assert log.read_text() == ""
    append(log, "three\n")
    assert logs.Reader(log).tail(2) == ["two", "three"]
    assert logs.Reader(log).tail(1) == ["three"]
    assert logs.Reader(log).tail(0) == []
    assert logs.Reader(log).tail(-1) == []


def test_following_goes_on_after_a_turn(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    append(log, "one\ntwo\n")
    reader = logs.Reader(log)
    reader.tail(0)
    logs.turn_over(log, 0)
    append(log, "three\n")
    assert reader.more() == ["three"]


def test_only_one_older_file_is_kept(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    for line in ("one", "two", "three"):
        append(log, f"{line}\n")
        logs.turn_over(log, 0)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"log": "", "log.1": "three\n"}


def test_a_line_without_end_is_cut(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    reader = logs.Reader(log)
    append(log, "x" * 200_000)
    pieces = [line for _ in range(4) for line in reader.more()]
    assert pieces
    assert max(map(len, pieces)) <= 128 * 1024


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(1, 40), max_size=8))
def test_what_is_written_in_any_pieces_is_read_as_the_same_lines(text: str, sizes: list[int]) -> None:
    whole, heard = f"{text}\n".encode(), []
    with tempfile.TemporaryDirectory() as directory:
        log = pathlib.Path(directory, "log")
        reader = logs.Reader(log)
        for size in (*sizes, len(whole)):
            piece, whole = whole[:size], whole[size:]
            with log.open("ab") as file:
                file.write(piece)
            heard += reader.more()
    assert heard == text.split("\n")

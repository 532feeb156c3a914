"""The cache of a node: its budget, its pins, what goes first, and what is left after a crash at any instruction."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from sidecar import errors, materialise, values
from sidecar.cache import disk, layout, locks
from sidecar.cache import store as cache_store
from sidecar.fetching import fetch, progress

from . import crashing
from .sources import model_of

MIB = 1 << 20
Make = Callable[[str], values.Model]


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "cache"


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Make:
    """A model of one mebibyte."""

    def made(name: str, size_bytes: int = MIB) -> values.Model:
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "weights").write_bytes(os.urandom(size_bytes))
        return model_of(tmp_path / "models" / name, name)

    return made


def small(root: pathlib.Path, mebibytes: float) -> cache_store.Cache:
    # The list of a directory takes blocks of its own on some file systems, but none that are counted.
    return cache_store.Cache(root, cache_store.Limits(most_bytes=int(mebibytes * MIB)))


def run(kept: cache_store.Cache, model: values.Model) -> tuple[values.SourceFile, ...]:
    return fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes)).learnt


def is_here(kept: cache_store.Cache, model: values.Model) -> bool:
    return all(kept.find(model.uri, file) for file in model.files)


def grown_old(root: pathlib.Path, kept: cache_store.Cache, model: values.Model, seconds: float) -> None:
    for file in model.files:
        blob = kept.blob(kept.find(model.uri, file))
        last = blob.stat().st_atime_ns - int(seconds * 1e9)
        os.utime(blob, ns=(last, layout.BLOB_TIME_NS))


def test_the_budget_holds_and_the_longest_unused_goes(root: pathlib.Path, make: Make) -> None:
    kept = small(root, 3)
    old, older, new = (make(name) for name in ("old", "older", "new"))
    for model in (old, older):
        run(kept, model)
    kept.retain(())
    grown_old(root, kept, old, 100)
    grown_old(root, kept, older, 200)
    run(kept, new)
    assert is_here(kept, older), "there was room for three"
    grown_old(root, kept, older, 300)
    run(kept, make("newest"))

    assert not is_here(kept, older)
    assert is_here(kept, old)
    assert kept.size_bytes() <= 3 * MIB


def test_what_is_counted_is_what_the_disk_gave(root: pathlib.Path, make: Make) -> None:
    kept = small(root, 3)
    run(kept, make("one"))
    found = subprocess.run(["du", "-s", "-B1", str(root / "blobs")], capture_output=True, text=True, check=True)
    directory_bytes = (root / "blobs").stat().st_blocks * 512

    assert kept.size_bytes() == int(found.stdout.split()[0]) - directory_bytes


def test_what_leases_need_stays_and_the_refusal_says_so(root: pathlib.Path, make: Make) -> None:
    kept, other = small(root, 2), small(root, 2)
    first, second, third = (make(name) for name in ("first", "second", "third"))
    run(kept, first)
    run(other, second)

    with pytest.raises(
        errors.ModelFailed, match=f"{2 * MIB} of {2 * MIB} are taken, {2 * MIB} of them by models"
    ) as full:
        run(kept, third)

    assert (full.value.failure.reason, full.value.failure.retryable) == ("NoRoomInCache", True)
    assert is_here(kept, first)
    assert is_here(kept, second)
    assert list((root / "partial").iterdir()) == []
    # The lease of the other sidecar ends.
    other.retain(())
    kept.retain((first, third))
    run(kept, third)
    assert is_here(kept, first)
    assert not is_here(kept, second)


def test_what_can_never_fit_is_refused_for_good(root: pathlib.Path, make: Make) -> None:
    kept = small(root, 2)
    held = make("held")
    run(kept, held)
    kept.retain(())
    big = make("big", 3 * MIB)  # type: ignore[call-arg]

    with pytest.raises(errors.ModelFailed, match=rf"takes {3 * MIB} bytes .* may hold {2 * MIB}; raise") as full:
        run(kept, big)

    assert (full.value.failure.reason, full.value.failure.retryable) == ("CacheTooSmall", False)
    assert is_here(kept, held), "nothing goes for what cannot come"


@pytest.mark.slow  # starts a process
def test_pins_end_with_their_process(root: pathlib.Path, make: Make) -> None:
    first, second = make("first"), make("second")
    with crashing.child(root, first, most_bytes=MIB, then="hold") as holder:
        with pytest.raises(errors.ModelFailed, match="NoRoomInCache"):
            run(small(root, 1), second)
        holder.kill()
        holder.wait()

    kept = small(root, 1)
    run(kept, second)
    assert not is_here(kept, first)
    assert [path for path in (root / "pins").iterdir() if not locks.is_held(path)] == []


def test_what_a_worker_has_linked_is_not_given_up_for_nothing(
    root: pathlib.Path, make: Make, tmp_path: pathlib.Path
) -> None:
    kept = small(root, 1)
    model = make("loaded")
    materialise.materialise(kept, tmp_path / "served", model, run(kept, model))
    kept.retain(())

    with pytest.raises(errors.ModelFailed, match="NoRoomInCache"):
        run(kept, make("other"))
    materialise.remove(tmp_path / "served", "loaded")
    run(kept, make("another"))


def test_two_who_want_the_same_need_the_room_once(root: pathlib.Path, make: Make) -> None:
    model = make("same")
    one, two = small(root, 1), small(root, 1)
    with one.admitted(model.uri, model.files) as missing, two.admitted(model.uri, model.files) as as_well:
        assert missing == as_well == set(model.files)
        with pytest.raises(errors.ModelFailed, match=f"{MIB} are promised to other fetches"):
            run(small(root, 1), make("other"))


@pytest.mark.slow  # starts a process
def test_a_promise_ends_with_the_process_it_was_made_to(root: pathlib.Path, make: Make) -> None:
    first, second = make("first"), make("second")
    with crashing.child(root, first, most_bytes=MIB, then="promise") as holder:
        with pytest.raises(errors.ModelFailed, match="NoRoomInCache"):
            run(small(root, 1), second)
        holder.kill()
        holder.wait()

    run(small(root, 1), second)


def test_half_a_file_goes_before_anything_whole(root: pathlib.Path, make: Make) -> None:
    kept = small(root, 2)
    whole, half = make("whole"), make("half")
    run(kept, whole)
    kept.retain(())
    grown_old(root, kept, whole, -3600)
    with kept.partial(half.uri, half.files[0]):
        pass
    run(kept, make("new"))

    assert is_here(kept, whole)
    assert list((root / "partial").iterdir()) == []


def test_ten_thousand_small_files_take_no_more_than_their_blocks(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "models" / "many"
    directory.mkdir(parents=True)
    for number in range(200):
        (directory / str(number)).write_bytes(b"%d" % number)
    kept = cache_store.Cache(root)
    run(kept, model_of(directory, "many"))

    assert kept.size_bytes() == 200 * disk.BLOCK_BYTES
    assert list((root / "locks").iterdir()) == []


@pytest.fixture
def crashes() -> Iterator[crashing.Crashes]:
    made = crashing.Crashes()
    yield made
    made.close()


@pytest.mark.slow  # some hundred processes die in it
@pytest.mark.timeout(300)
def test_a_crash_at_any_line_leaves_nothing_wrong(crashes: crashing.Crashes, tmp_path: pathlib.Path) -> None:
    outcome = crashes.run(tmp_path)

    assert outcome.crashes > 100
    assert outcome.wrong == []


def test_a_sweep_takes_what_nobody_can_go_on_with(root: pathlib.Path, make: Make) -> None:
    kept = cache_store.Cache(root)
    model, gone = make("kept"), make("gone")
    for each in (model, gone):
        run(kept, each)
    kept.blob(kept.find(gone.uri, gone.files[0])).unlink()
    for name in ("a" * 64, f"{'b' * 64}.another-boot", f"{'c' * 64}.0011.member"):
        (root / "partial" / name).write_bytes(b"x")
        os.utime(root / "partial" / name, (1, 1))
    (root / "pins" / "dead").write_text("words")
    (root / "reserved" / "dead").write_text(f"{'d' * 64} 1000000\n")
    (root / "unpacked" / ("e" * 64)).write_text(f"{'f' * 64} 1 path\n")

    kept.sweep()

    assert list((root / "partial").iterdir()) == []
    assert list((root / "unpacked").iterdir()) == []
    assert list((root / "reserved").iterdir()) == []
    assert len(list((root / "known").iterdir())) == 1
    assert is_here(kept, model)


@pytest.mark.slow  # starts a process
def test_a_full_and_a_read_only_disk_are_told(tmp_path: pathlib.Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "tests.integration.sidecar.small_disk", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert said.stdout.splitlines() == ["NoRoomOnDisk True", "CacheUnusable True", "served"], said.stderr

"""Models that come as one archive, and archives that mean harm."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import random  # noqa: TID251 - hypothesis gives the seed
import stat
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator

import hypothesis
import pytest
from hypothesis import strategies as st

from sidecar import errors, materialise, values
from sidecar.cache import store as cache_store
from sidecar.fetching import archive, fetch, formats, progress

from . import weather

MIB = 1 << 20
FILES = {"config.pbtxt": b"max_batch_size: 8\n", "1/model.onnx": b"weights" * 100_000, "1/empty": b"", "2/a b/ü": b"x"}


@pytest.fixture
def site() -> Iterator[weather.Store]:
    with weather.running() as store:
        yield store


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> cache_store.Cache:
    return cache_store.Cache(tmp_path / "cache")


def tarred(files: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as packed:  # type: ignore[call-overload] # one of its modes
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
        for each in more:
            packed.addfile(each)
    return made.getvalue()


def zipped(files: dict[str, bytes], *more: zipfile.ZipInfo) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
        for each in more:
            packed.writestr(each, b"target")
    return made.getvalue()


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def linked() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("1/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def model(site: weather.Store, name: str, data: bytes) -> values.Model:
    site.files[f"/models/{name}"] = data
    return values.Model(
        name="m",
        uri=f"{site.url}/models/{name}",
        files=(values.SourceFile(path=name, size_bytes=len(data), version=weather.tag(data)),),
        source_digest="d",
        layout=values.Layout.ARCHIVE,
        access=values.HttpAccess(),
    )


def run(kept: cache_store.Cache, wanted: values.Model) -> fetch.Fetched:
    return fetch.fetch(kept, wanted, threading.Event(), progress.Progress(wanted.size_bytes))


def contents(kept: cache_store.Cache, found: fetch.Fetched) -> dict[str, bytes]:
    return {file.path: kept.blob(file.sha256).read_bytes() for file in found.contents}


PACKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "m.tar": lambda files: tarred(files, mode="w"),
    "m.tar.gz": tarred,
    "m.tgz": tarred,
    "m.zip": zipped,
}


@pytest.mark.parametrize("name", PACKERS)
def test_an_archive_is_its_files(
    kept: cache_store.Cache, site: weather.Store, tmp_path: pathlib.Path, name: str
) -> None:
    wanted = model(site, name, PACKERS[name](FILES))

    found = run(kept, wanted)
    materialise.materialise(kept, tmp_path / "served", wanted, found.contents)

    assert contents(kept, found) == FILES
    assert [file.path for file in found.learnt] == [name]
    assert (tmp_path / "served" / "m" / "1" / "model.onnx").read_bytes() == FILES["1/model.onnx"]
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


def test_what_was_unpacked_is_there_without_the_archive(kept: cache_store.Cache, site: weather.Store) -> None:
    wanted = model(site, "m.zip", zipped(FILES))
    found = run(kept, wanted)
    asked = len(site.asked)

    assert not kept.blob(found.learnt[0].sha256).exists(), "its bytes are here in another form"
    assert run(kept, wanted) == found
    assert len(site.asked) == asked
    kept.retain((wanted,))
    kept.sweep()
    kept.blob(found.contents[0].sha256).unlink()
    assert contents(kept, run(kept, wanted)) == FILES


def test_what_leases_need_of_an_archive_stays(tmp_path: pathlib.Path, site: weather.Store) -> None:
    kept = cache_store.Cache(tmp_path / "cache", cache_store.Limits(most_bytes=3 * MIB))
    data = os.urandom(MIB)
    wanted = model(site, "m.tar", tarred({"1/model.onnx": data}, mode="w"))
    found = run(kept, wanted)
    kept.retain((wanted,))
    other = cache_store.Cache(tmp_path / "cache", kept.limits)
    big = site.put("big", os.urandom(5 * MIB // 2))

    with pytest.raises(errors.ModelFailed, match="NoRoomInCache"):
        run(other, site.model(big))

    assert contents(kept, found) == {"1/model.onnx": data}


@pytest.mark.parametrize(
    ("names", "stripped"),
    [
        (("digits/config.pbtxt", "digits/1/model.onnx"), {"config.pbtxt", "1/model.onnx"}),
        (("./1/model.onnx",), {"1/model.onnx"}),
        (("1/model.onnx",), {"1/model.onnx"}),
        (("a/1/f", "b/1/f"), {"a/1/f", "b/1/f"}),
    ],
)
def test_one_directory_around_everything_is_left_away(
    kept: cache_store.Cache, site: weather.Store, names: tuple[str, ...], stripped: set[str]
) -> None:
    assert contents(kept, run(kept, model(site, "m.tar.gz", tarred(dict.fromkeys(names, b"x"))))).keys() == stripped


HARMFUL: dict[str, tuple[str, bytes, str]] = {
    "escape": ("m.tar.gz", tarred({"../../etc/passwd": b"x"}), "'../../etc/passwd', which is not a plain path"),
    "escape zip": ("m.zip", zipped({"1/../../x": b"x"}), "not a plain path"),
    "absolute": ("m.tar", tarred({"/etc/passwd": b"x"}, mode="w"), "not a plain path"),
    "backslash": ("m.tar", tarred({"..\\x": b"x"}, mode="w"), "not a plain path"),
    "control": ("m.tar", tarred({"a\nb": b"x"}, mode="w"), "not a plain path"),
    "long": ("m.tar", tarred({"a/" * 600 + "f": b"x"}, mode="w"), "not a plain path"),
    "symlink": ("m.tar", tarred({}, entry("1/link", tarfile.SYMTYPE, "/etc/passwd"), mode="w"), "a link; pack what"),
    "inner": ("m.tar", tarred({"a": b""}, entry("b", tarfile.SYMTYPE, "a"), mode="w"), "a link"),
    "hard link": ("m.tar", tarred({}, entry("1/link", tarfile.LNKTYPE, "/etc/passwd"), mode="w"), "a link"),
    "zip link": ("m.zip", zipped({"a": b""}, linked()), "a link"),
    "device": ("m.tar", tarred({}, entry("1/null", tarfile.CHRTYPE), mode="w"), "no plain file"),
    "fifo": ("m.tar", tarred({}, entry("1/fifo", tarfile.FIFOTYPE), mode="w"), "no plain file"),
    "clash": ("m.tar", tarred({"a": b"x", "a/b": b"x"}, mode="w"), "'a' both as a file and as a directory"),
    "nothing": ("m.tar", tarred({}, entry("1", tarfile.DIRTYPE), mode="w"), "holds no file"),
    "bomb": ("m.tar.gz", tarred({"1/zeros": bytes(65 * MIB)}), "unpacks to more than 67108864 bytes, 200 times"),
    "zip bomb": ("m.zip", zipped({f"{each}": bytes(17 * MIB) for each in range(4)}), "it looks like a bomb"),
    "no archive": ("m.zip", b"PK but not really", "cannot be read"),
    "no gzip": ("m.tar.gz", b"\x1f\x8bnot really", "cannot be read"),
    "cut": ("m.tar.gz", tarred({"f": os.urandom(MIB)})[: MIB // 2], "cannot be read"),
    "cut zip": ("m.zip", zipped(FILES)[:-30], "cannot be read"),
    "unknown": ("m.7z", b"x", "is no archive that is read; use one of .tar, .tar.gz, .tgz, .zip"),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_what_means_harm_is_refused_with_the_reason_and_leaves_nothing(
    kept: cache_store.Cache, site: weather.Store, tmp_path: pathlib.Path, harm: str
) -> None:
    name, data, reason = HARMFUL[harm]
    with pytest.raises(errors.ModelFailed) as caught:
        run(kept, model(site, name, data))

    assert (caught.value.failure.reason, caught.value.failure.retryable) == ("InvalidArchive", False)
    assert reason in caught.value.failure.message
    assert list((tmp_path / "cache" / "partial").iterdir()) == []
    assert list((tmp_path / "cache" / "unpacked").iterdir()) == []


def test_a_header_that_claims_a_gibibyte_takes_no_memory(tmp_path: pathlib.Path) -> None:
    """An extended header is read whole by the library: here a gibibyte of zeros, packed into a mebibyte."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 1 << 30
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(head.tobuf())
        packed.write(bytes(8 * MIB))

    tracemalloc.start()
    with pytest.raises(formats.Refused, match="has a header of more than"):
        list(formats.entries(path, path.name))
    _now, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 16 * MIB


@pytest.mark.parametrize("bound", [{"most_files": 2}, {"most_bytes": 100}])
def test_bounds_are_held(kept: cache_store.Cache, tmp_path: pathlib.Path, bound: dict[str, int]) -> None:
    packed = zipped({"a": b"x" * 50, "b": b"x" * 50, "c": b"x"})
    (tmp_path / "cache" / "blobs" / ("a" * 64)).write_bytes(packed)
    file = values.SourceFile(path="m.zip", size_bytes=len(packed), sha256="a" * 64)

    with pytest.raises(errors.ModelFailed, match="more than"):
        archive.unpack(kept, file, threading.Event(), archive.Bounds(**bound))


@pytest.mark.slow  # many archives
@hypothesis.given(st.sampled_from(sorted(PACKERS)), st.integers(), st.integers(1, 40))
@hypothesis.settings(max_examples=150, deadline=None)
def test_a_broken_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, flips: int
) -> None:
    chance = random.Random(seed)
    data = bytearray(PACKERS[name]({"1/model.onnx": b"weights" * 50, "config.pbtxt": b"x: 1\n"}))
    for _ in range(flips):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path = tmp_path_factory.getbasetemp() / f"broken-{name}"
    path.write_bytes(data)

    try:
        for each in formats.entries(path, name):
            for piece in each.pieces():
                assert len(piece) <= MIB
    except formats.Refused:
        pass

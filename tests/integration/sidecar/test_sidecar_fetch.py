from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from sidecar import errors, materialise, values
from sidecar.cache import layout
from sidecar.cache import store as cache_store
from sidecar.fetching import fetch, progress, reading

from .conftest import Cutter, Store
from .sources import model_of

MIB = 1 << 20


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> cache_store.Cache:
    return cache_store.Cache(tmp_path / "cache")


def run(kept: cache_store.Cache, model: values.Model) -> tuple[values.SourceFile, ...]:
    return fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes)).learnt


def failure(kept: cache_store.Cache, model: values.Model) -> tuple[str, bool]:
    with pytest.raises(errors.ModelFailed) as caught:
        run(kept, model)
    return caught.value.failure.reason, caught.value.failure.retryable


def leftovers(tmp_path: pathlib.Path) -> list[str]:
    return [each.name for each in (tmp_path / "cache" / "partial").iterdir()]


def taken(directory: pathlib.Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in directory.iterdir())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_first_fetch_learns_what_a_later_one_finds(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = model_of(source)

    learnt = run(kept, model)
    source.rename(tmp_path / "gone")

    assert [file.sha256 for file in learnt] == [
        sha256((tmp_path / "gone" / file.path).read_bytes()) for file in model.files
    ]
    assert run(kept, model) == learnt
    assert kept.size_bytes() == taken(tmp_path / "cache" / "blobs") >= model.size_bytes
    assert leftovers(tmp_path) == []


def test_a_model_that_will_never_be_whole_leaves_nothing_of_its_other_files(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with (source / "1" / "weights").open("wb") as weights:
        weights.truncate(reading.SPAN_BYTES + 1)
    model = model_of(source)
    begun = next(file for file in model.files if file.size_bytes > reading.SPAN_BYTES)
    with kept.fetching(model.uri, begun, threading.Event()), kept.partial(model.uri, begun):
        pass
    assert leftovers(tmp_path)
    os.utime(source / "1" / "model.onnx", ns=(1, 1))

    assert failure(kept, model) == ("SourceChanged", False)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("change", ["longer", "touched", "removed"])
def test_changed_sources_are_refused(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path, change: str
) -> None:
    model = model_of(source)
    file = source / "1" / "model.onnx"
    if change == "longer":
        file.write_bytes(b"other")
    elif change == "touched":
        os.utime(file, ns=(1, 1))
    else:
        file.unlink()

    assert failure(kept, model) == ("SourceChanged", False)
    assert leftovers(tmp_path) == []


def test_bytes_that_are_not_the_learnt_ones_are_refused(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = model_of(source)
    pinned = tuple(dataclasses.replace(file, sha256=sha256(b"others")) for file in model.files)

    assert failure(kept, dataclasses.replace(model, files=pinned)) == ("SourceChanged", False)
    assert leftovers(tmp_path) == []
    assert kept.size_bytes() == 0


def test_a_link_that_leads_outside_is_refused(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (source / "inside").symlink_to("config.pbtxt")
    run(kept, model_of(source))
    (source / "outside").symlink_to(tmp_path / "secret")

    assert failure(kept, model_of(source)) == ("InvalidPath", False)


def test_a_fifo_does_not_block(kept: cache_store.Cache, source: pathlib.Path) -> None:
    model = model_of(source)
    (source / "config.pbtxt").unlink()
    os.mkfifo(source / "config.pbtxt")

    assert failure(kept, model) == ("InvalidPath", False)


@pytest.mark.parametrize("uri", ["ftp://b/x", "nonsense", "", "file://host/x", "s3://"])
def test_a_uri_that_is_not_read_says_so(kept: cache_store.Cache, source: pathlib.Path, uri: str) -> None:
    model = dataclasses.replace(model_of(source), uri=uri, access=values.S3Access(access_key_id="x"))

    assert failure(kept, model) == ("InvalidUri", False)


def test_cached_bytes_that_somebody_wrote_to_are_fetched_anew(kept: cache_store.Cache, source: pathlib.Path) -> None:
    model = model_of(source)
    blob = kept.blob(run(kept, model)[0].sha256)
    blob.chmod(0o600)
    blob.write_bytes(b"x" * blob.stat().st_size)

    assert sha256(kept.blob(run(kept, model)[0].sha256).read_bytes()) == model_sha(source, model)


def test_broken_bytes_are_replaced_and_never_taken_from_under_another(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = model_of(source)
    blob = kept.blob(run(kept, model)[0].sha256)
    whole = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(b"x" * len(whole))

    # What one finds broken, another may have replaced before the first is done looking.
    assert cache_store.Cache(tmp_path / "cache").find(model.uri, model.files[0]) == ""
    assert blob.exists()
    run(kept, model)
    assert blob.read_bytes() == whole


def test_a_cache_that_cannot_be_read_is_a_failure_with_a_word(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = model_of(source)
    run(kept, model)
    blobs = tmp_path / "cache" / "blobs"
    blobs.rename(blobs.with_name("moved"))
    blobs.write_bytes(b"no directory")

    assert failure(kept, model) == ("CacheUnusable", True)


def model_sha(source: pathlib.Path, model: values.Model) -> str:
    return sha256((source / model.files[0].path).read_bytes())


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process can grow beyond a mebibyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_leaves_nothing(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    (source / "1" / "model.onnx").write_bytes(bytes(2 * MIB))
    model = model_of(source)
    request.getfixturevalue("small_disk")

    with pytest.raises(errors.ModelFailed, match=f"no room for a file of {2 * MIB} bytes") as caught:
        run(kept, model)

    assert caught.value.failure.reason == "NoRoomOnDisk"
    assert caught.value.failure.retryable, "a disk is freed sooner or later; no lease ends for it"
    assert str(tmp_path) not in caught.value.failure.message
    assert leftovers(tmp_path) == []


def test_many_at_once_fetch_once(kept: cache_store.Cache, store: Store, s3_server: tuple[str, int]) -> None:
    data = os.urandom(MIB)
    file = store.put("m", "1/model.onnx", data)
    counting = Cutter(s3_server, 1 << 60)
    model = s3_model(store, (file,), counting.url)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        learnt = list(pool.map(lambda _: run(kept, model), range(8)))
    counting.close()

    assert set(learnt) == {(dataclasses.replace(file, sha256=sha256(data)),)}
    assert counting.answered_bytes < 1.5 * MIB


def test_another_process_waits_for_the_one_that_fetches(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = model_of(source)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "cache"), layout.identity(model.uri, model.files[0])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin
    assert holder.stdout
    with holder, concurrent.futures.ThreadPoolExecutor(1) as pool:
        holder.stdout.readline()
        stop = threading.Event()
        waiting = pool.submit(fetch.fetch, kept, model, stop, progress.Progress(model.size_bytes))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        holder.stdin.close()
        assert len(waiting.result(timeout=30).learnt) == 2


HOLDER = """
import fcntl, sys
lock = open(f"{sys.argv[1]}/locks/{sys.argv[2]}", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


# S3.


def s3_model(store: Store, files: tuple[values.SourceFile, ...], url: str = "") -> values.Model:
    return values.Model(name="m", uri="s3://models/m", files=files, source_digest="d", access=store.access(url))


def test_an_object_comes_in_ranges_whole(kept: cache_store.Cache, store: Store) -> None:
    data = os.urandom(2 * reading.SPAN_BYTES + 12345)
    files = (store.put("m", "1/model.onnx", data), store.put("m", "empty", b""), store.put("m", "a b/ü#?.bin", b"x"))

    learnt = run(kept, s3_model(store, files))

    assert [file.sha256 for file in learnt] == [sha256(data), sha256(b""), sha256(b"x")]
    assert kept.blob(learnt[0].sha256).read_bytes() == data


def test_a_cut_costs_only_what_was_under_way(
    kept: cache_store.Cache, store: Store, s3_server: tuple[str, int], tmp_path: pathlib.Path
) -> None:
    data = os.urandom(4 * reading.SPAN_BYTES)
    file = store.put("m", "1/model.onnx", data)
    cutter = Cutter(s3_server, 5 * reading.SPAN_BYTES // 2)
    model = s3_model(store, (file,), cutter.url)
    monkey = pytest.MonkeyPatch()
    # One range after the other, so that it is known which were finished.
    monkey.setattr(fetch, "PARALLEL", 1)

    assert failure(kept, model) == ("StoreUnavailable", True)
    assert leftovers(tmp_path) != []
    before_bytes = cutter.answered_bytes
    cutter.mend()
    told = progress.Progress(model.size_bytes)
    [learnt] = fetch.fetch(kept, model, threading.Event(), told).learnt
    cutter.close()
    monkey.undo()

    assert learnt.sha256 == sha256(data)
    assert cutter.answered_bytes - before_bytes < 5 * reading.SPAN_BYTES // 2
    assert leftovers(tmp_path) == []
    assert told.fetched_bytes == len(data)


def test_an_object_that_changed_is_refused(kept: cache_store.Cache, store: Store, tmp_path: pathlib.Path) -> None:
    file = store.put("m", "1/model.onnx", b"first")
    store.put("m", "1/model.onnx", b"other")

    assert failure(kept, s3_model(store, (file,))) == ("SourceChanged", False)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("size_bytes", [0, 4, 6])
def test_an_object_of_another_size_is_refused(kept: cache_store.Cache, store: Store, size_bytes: int) -> None:
    file = dataclasses.replace(store.put("m", "f", b"first"), size_bytes=size_bytes)

    assert failure(kept, s3_model(store, (file,))) == ("SourceChanged", False)


def test_a_missing_object_is_refused(kept: cache_store.Cache, store: Store) -> None:
    file = store.put("m", "f", b"first")
    store.client.delete_object(Bucket="models", Key="m/f")

    assert failure(kept, s3_model(store, (file,))) == ("SourceChanged", False)


def test_a_store_that_does_not_answer_may_come_back(kept: cache_store.Cache, store: Store) -> None:
    file = store.put("m", "f", b"first")
    cutter = Cutter(("127.0.0.1", 9), 0)
    model = s3_model(store, (file,), cutter.url)
    cutter.close()

    with pytest.raises(errors.ModelFailed) as caught:
        run(kept, model)

    assert caught.value.failure.retryable
    assert cutter.url.removeprefix("http://") not in caught.value.failure.message
    assert "a-secret-for-tests" not in str(caught.value)


def test_a_fetch_is_called_off(kept: cache_store.Cache, store: Store) -> None:
    stop = threading.Event()
    stop.set()
    model = s3_model(store, (store.put("m", "f", b"first"),))

    with pytest.raises(errors.Stopped):
        fetch.fetch(kept, model, stop, progress.Progress(5))


def test_a_public_object_needs_no_credentials(kept: cache_store.Cache, store: Store) -> None:
    file = store.put("m", "f", b"first")
    store.client.put_object_acl(Bucket="models", Key="m/f", ACL="public-read")
    anonymous = values.S3Access(endpoint_url=store.url, path_style=True)

    [learnt] = run(kept, dataclasses.replace(s3_model(store, (file,)), access=anonymous))

    assert learnt.sha256 == sha256(b"first")


def test_without_credentials_the_cache_still_serves(kept: cache_store.Cache, store: Store) -> None:
    model = s3_model(store, (store.put("m", "f", b"first"),))
    bare = dataclasses.replace(model, access=None)

    assert failure(kept, bare) == ("NoCredentials", True)
    assert run(kept, model) == run(kept, bare)


# From the cache to the worker's directory.


def files_below(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(each.relative_to(directory)): each.read_bytes() for each in directory.rglob("*") if each.is_file()}


def test_a_model_directory_holds_exactly_its_files(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    repository = tmp_path / "models"
    model = model_of(source)
    (repository / "digits" / "9").mkdir(parents=True)
    (repository / "digits" / "9" / "old").write_text("old")

    materialise.materialise(kept, repository, model, run(kept, model))

    assert files_below(repository / "digits") == files_below(source)
    assert list((repository / ".tms-aside").iterdir()) == []
    materialise.remove(repository, "digits")
    assert not (repository / "digits").exists()
    assert run(kept, model)


def test_a_configuration_of_another_name_gets_the_served_one(
    kept: cache_store.Cache, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    repository = tmp_path / "models"
    model = model_of(source, "renamed")
    learnt = run(kept, model)

    materialise.materialise(kept, repository, model, learnt)

    config = (repository / "renamed" / "config.pbtxt").read_text()
    assert 'name: "renamed"' in config
    assert "max_batch_size: 8" in config
    assert 'name: "digits"' in kept.blob(learnt[1].sha256).read_text()
    assert run(kept, model) == learnt


def test_nothing_is_removed_outside_the_repository(tmp_path: pathlib.Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "precious").mkdir()

    materialise.remove(tmp_path / "models", "../precious")

    assert (tmp_path / "precious").exists()

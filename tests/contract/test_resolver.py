"""What the resolver owes its callers, whatever kind of repository the model is in."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Protocol

import boto3
import pytest
from moto import server as moto_server
from mypy_boto3_s3 import client as s3_client

from tests.support import web_stores
from tms_server.model import errors, lease, source
from tms_server.ports import resolver as port
from tms_server.repositories import options, resolver

ONNX = {"config.pbtxt": b'name: "digits"', "1/model.onnx": b"one", "2/model.onnx": b"two!"}


class Place(Protocol):
    """A repository called ``main`` into which a test puts models."""

    resolver: resolver.RepositoryResolver

    def put(self, path: str, files: Mapping[str, bytes]) -> None: ...

    def direct(self, path: str) -> str:
        """The concrete URI of a path in the repository."""
        ...


class FilePlace:
    def __init__(self, root: pathlib.Path) -> None:
        self.root = root / "models"
        self.root.mkdir()
        self.resolver = resolver.RepositoryResolver([options.FileRepository(name="main", root=self.root)])

    def put(self, path: str, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            target = self.root / path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def direct(self, path: str) -> str:
        return f"file://{self.root}/{path}"


class S3Place:
    def __init__(self, endpoint_url: str) -> None:
        self.client = _client(endpoint_url)
        with contextlib.suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
            self.client.create_bucket(Bucket="bucket")
        self.resolver = resolver.RepositoryResolver([repository(endpoint_url, prefix="team/models")])

    def put(self, path: str, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.client.put_object(Bucket="bucket", Key=f"team/models/{path}/{name}", Body=content)

    def direct(self, path: str) -> str:
        return f"s3://bucket/team/models/{path}"


class SitePlace:
    def __init__(self, root: pathlib.Path) -> None:
        self.site = web_stores.Site(root)
        repository = options.HttpRepository(name="main", url=f"{self.site.url}/team")
        self.resolver = resolver.RepositoryResolver([repository])

    def put(self, path: str, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.site.put(f"team/{path}/{name}", content)

    def direct(self, path: str) -> str:
        return f"{self.site.url}/team/{path}/"


class GcsPlace:
    def __init__(self, store: web_stores.Gcs) -> None:
        self.store = store
        repository = options.GcsRepository(name="main", bucket="bucket", prefix="team/models", endpoint_url=store.url)
        self.resolver = resolver.RepositoryResolver([repository])

    def put(self, path: str, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.store.put(f"team/models/{path}/{name}", content)

    def direct(self, path: str) -> str:
        return f"gs://bucket/team/models/{path}"


def repository(endpoint_url: str, *, bucket: str = "bucket", prefix: str = "", key: str = "k") -> options.S3Repository:
    return options.S3Repository(
        name="main",
        bucket=bucket,
        prefix=prefix,
        endpoint_url=endpoint_url,
        path_style=True,
        credentials=options.StaticCredentials(options.Keys(key, "very secret")),
    )


@functools.cache
def _client(endpoint_url: str) -> s3_client.S3Client:
    return boto3.client(
        "s3", endpoint_url=endpoint_url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def gcs() -> Iterator[web_stores.Gcs]:
    with web_stores.gcs() as store:
        yield store


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Iterator[SitePlace]:
    made = SitePlace(tmp_path)
    yield made
    made.resolver.close()
    made.site.close()


@pytest.fixture(params=["file", "s3", "gcs", "site"])
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Place]:
    made: Place
    match request.param:
        case "file":
            made = FilePlace(tmp_path)
        case "s3":
            made = S3Place(request.getfixturevalue("moto"))
        case "gcs":
            made = GcsPlace(request.getfixturevalue("gcs"))
        case _:
            made = request.getfixturevalue("site")
    yield made
    made.resolver.close()


def reference(uri: str, framework: source.Framework | None = None) -> lease.ModelReference:
    return lease.ModelReference(name="digits", uri=uri, framework=framework)


async def test_a_model_is_its_files_with_sizes_and_versions(place: Place) -> None:
    place.put("digits", ONNX)
    found = await place.resolver.resolve(reference("model://main/digits"))
    assert {file.path: file.size_bytes for file in found.files} == {name: len(text) for name, text in ONNX.items()}
    assert all(file.version for file in found.files)
    assert found.framework is source.Framework.ONNXRUNTIME
    assert found.uri == place.direct("digits")


async def test_the_concrete_uri_means_the_same_bytes(place: Place) -> None:
    place.put("digits", ONNX)
    by_name = await place.resolver.resolve(reference("model://main/digits/"))
    assert await place.resolver.resolve(reference(by_name.uri)) == by_name


async def test_changed_bytes_change_the_digest(place: Place) -> None:
    place.put("changing", ONNX)
    before = await place.resolver.resolve(reference("model://main/changing"))
    place.put("changing", {"2/model.onnx": b"too!"})
    after = await place.resolver.resolve(reference("model://main/changing"))
    assert after.digest != before.digest


async def test_a_neighbour_with_the_same_beginning_is_another_model(place: Place) -> None:
    place.put("twin", ONNX)
    place.put("twin-two", {"1/model.py": b"pass"})
    found = await place.resolver.resolve(reference("model://main/twin"))
    assert len(found.files) == len(ONNX)


@pytest.mark.parametrize(
    ("files", "framework"),
    [
        ({"1/model.plan": b""}, source.Framework.TENSORRT),
        ({"1/model.py": b""}, source.Framework.PYTHON),
        ({"1/model.pt": b""}, source.Framework.PYTORCH),
        ({"1/model.savedmodel/saved_model.pb": b""}, source.Framework.TENSORFLOW),
        ({"1/model.onnx/model.onnx": b"", "1/model.onnx/weights.bin": b"w"}, source.Framework.ONNXRUNTIME),
        ({"config.pbtxt": b'platform: "ensemble"'}, source.Framework.ENSEMBLE),
        ({"config.pbtxt": b'backend: "python"', "1/model.onnx": b""}, source.Framework.PYTHON),
        ({"config.pbtxt": b'platform: "tensorrt_plan" of_a_later_version: 1'}, source.Framework.TENSORRT),
    ],
)
async def test_the_framework_is_told_by_configuration_then_by_files(
    place: Place, request: pytest.FixtureRequest, files: Mapping[str, bytes], framework: source.Framework
) -> None:
    path = request.node.callspec.id
    place.put(path, files)
    assert (await place.resolver.resolve(reference(f"model://main/{path}"))).framework is framework


async def test_a_framework_that_is_said_settles_what_the_files_leave_open(place: Place) -> None:
    place.put("open", {"1/weights.bin": b"", "1/helper.py": b""})
    with pytest.raises(errors.InvalidField, match=r"framework: .*say one of"):
        await place.resolver.resolve(reference("model://main/open"))
    found = await place.resolver.resolve(reference("model://main/open", source.Framework.PYTORCH))
    assert found.framework is source.Framework.PYTORCH


async def test_a_framework_that_contradicts_the_model_is_refused(place: Place) -> None:
    place.put("digits", ONNX)
    with pytest.raises(errors.InvalidField, match=r"framework: .*onnxruntime"):
        await place.resolver.resolve(reference("model://main/digits", source.Framework.PYTORCH))


@pytest.mark.parametrize("path", ["missing", "missing/deeper", "digits/9"])
async def test_what_is_not_there_is_not_found(place: Place, path: str) -> None:
    place.put("digits", ONNX)
    with pytest.raises(errors.NotFound):
        await place.resolver.resolve(reference(f"model://main/{path}"))


async def test_an_unknown_repository_is_not_found(place: Place) -> None:
    with pytest.raises(errors.NotFound, match=r"'other'; declared are .*main"):
        await place.resolver.resolve(reference("model://other/digits"))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "digits",
        "ftp://host/digits",
        "model://main",
        "model://main/",
        "model://main//digits",
        "model://main/../digits",
        "model://main/a/./digits",
        "model://main/dig\nits",
        "model://main/dig%2e%2eits",
        "model://main/digits?version=1",
        "file://host/tmp/digits",
        "file:///",
        "file:///etc",
        "file:///tmp/../etc",
        "s3://",
        "s3://bucket",
        "s3://elsewhere/digits",
        "s3://bucket/team/models-of-others/digits",
        "gs://bucket/team/models-of-others/digits",
        "gs://elsewhere/digits",
        "https://elsewhere/digits",
        "http://127.0.0.1/../digits",
    ],
)
async def test_unreadable_and_outside_uris_are_refused(place: Place, uri: str) -> None:
    with pytest.raises(errors.InvalidField) as caught:
        await place.resolver.resolve(reference(uri))
    assert caught.value.path == "uri"


@pytest.mark.parametrize("uri", ["azure://bucket/digits", "hf://host/digits"])
async def test_schemes_of_later_versions_are_unimplemented(place: Place, uri: str) -> None:
    with pytest.raises(errors.Unimplemented, match="uri"):
        await place.resolver.resolve(reference(uri))


async def test_an_unknown_backend_is_unimplemented(place: Place) -> None:
    place.put("odd", {"config.pbtxt": b'backend: "abacus"'})
    with pytest.raises(errors.Unimplemented, match="abacus"):
        await place.resolver.resolve(reference("model://main/odd"))


@pytest.mark.parametrize("text", [b"{{{", b"\xff\xfe", b"a {" * 5000, b"x: 1\n" * 300_000])
async def test_a_configuration_that_cannot_be_read_is_refused(place: Place, text: bytes) -> None:
    place.put("broken", {"config.pbtxt": text})
    with pytest.raises(errors.InvalidField, match=r"config\.pbtxt"):
        await place.resolver.resolve(reference("model://main/broken"))


async def test_limits_are_held(place: Place) -> None:
    place.put("digits", ONNX)
    for limits in (options.Limits(most_files=2), options.Limits(most_bytes=10)):
        small = resolver.RepositoryResolver(place.resolver._repositories, limits)
        with pytest.raises(errors.InvalidField, match="more than"):
            await small.resolve(reference("model://main/digits"))
        small.close()


class TestFiles:
    @pytest.fixture
    def tree(self, tmp_path: pathlib.Path) -> Iterator[FilePlace]:
        made = FilePlace(tmp_path)
        yield made
        made.resolver.close()

    async def test_links_inside_the_root_are_followed(self, tree: FilePlace) -> None:
        tree.put("digits", ONNX)
        (tree.root / "alias").symlink_to("digits")
        found = await tree.resolver.resolve(reference("model://main/alias"))
        assert found == await tree.resolver.resolve(reference("model://main/digits"))

    @pytest.mark.parametrize("link", ["digits", "other/1", "other/config.pbtxt"])
    async def test_links_that_leave_the_root_are_refused(self, tree: FilePlace, link: str) -> None:
        outside = tree.root.parent / "outside"
        outside.mkdir()
        (outside / "model.onnx").write_bytes(b"secret")
        path = tree.root / link
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(outside / "model.onnx" if link.endswith("pbtxt") else outside)
        with pytest.raises(errors.InvalidField, match="leaves the"):
            await tree.resolver.resolve(reference(f"model://main/{link.split('/', maxsplit=1)[0]}"))

    @pytest.mark.parametrize("target", ["..", "loop"])
    async def test_links_in_a_loop_are_refused(self, tree: FilePlace, target: str) -> None:
        tree.put("digits", ONNX)
        (tree.root / "digits" / "loop").symlink_to(target)
        with pytest.raises(errors.InvalidField, match=r"loop|itself|more than"):
            await tree.resolver.resolve(reference("model://main/digits"))

    async def test_any_directory_name_survives_its_uri(self, tree: FilePlace) -> None:
        for name in ("with space", "100%", "what?#", "größe"):
            tree.put(name, ONNX)
            uri = (tree.root / name).as_uri()
            found = await tree.resolver.resolve(reference(uri))
            assert found.uri == uri
            assert len(found.files) == len(ONNX)
        for wrong in ("what?", "%ff", "%2e%2e/models/100%25", "a%00b", "a%2fb//"):
            with pytest.raises(errors.InvalidField, match="uri"):
                await tree.resolver.resolve(reference(f"file://{tree.root}/{wrong}"))

    async def test_links_between_models_are_refused(self, tree: FilePlace) -> None:
        tree.put("digits", ONNX)
        tree.put("other", {"1/model.onnx": b""})
        (tree.root / "other" / "2").symlink_to(tree.root / "digits" / "2")
        with pytest.raises(errors.InvalidField, match="leaves the model's directory"):
            await tree.resolver.resolve(reference("model://main/other"))
        (tree.root / "digits" / "3").symlink_to("2")
        assert len((await tree.resolver.resolve(reference("model://main/digits"))).files) == len(ONNX) + 1

    async def test_special_files_and_unsafe_names_are_refused(self, tree: FilePlace) -> None:
        tree.put("pipe", ONNX)
        os.mkfifo(tree.root / "pipe" / "fifo")
        with pytest.raises(errors.InvalidField, match="fifo"):
            await tree.resolver.resolve(reference("model://main/pipe"))
        tree.put("name", {"1/model.onnx": b"", "1/two\nlines": b""})
        with pytest.raises(errors.InvalidField, match="rename"):
            await tree.resolver.resolve(reference("model://main/name"))

    async def test_a_file_is_no_model_and_an_empty_directory_neither(self, tree: FilePlace) -> None:
        tree.put("digits", ONNX)
        with pytest.raises(errors.InvalidField, match="directory"):
            await tree.resolver.resolve(reference("model://main/digits/config.pbtxt"))
        (tree.root / "empty").mkdir()
        with pytest.raises(errors.NotFound, match="empty"):
            await tree.resolver.resolve(reference("model://main/empty"))

    async def test_a_root_that_is_away_is_unavailable(self, tree: FilePlace) -> None:
        tree.root.rename(tree.root.with_name("away"))
        with pytest.raises(errors.Unavailable, match="main"):
            await tree.resolver.resolve(reference("model://main/digits"))

    def test_no_access_material_is_needed(self, tree: FilePlace) -> None:
        assert tree.resolver.access(tree.direct("digits")) is None


class TestS3:
    async def test_a_missing_bucket_is_not_found(self, moto: str) -> None:
        lookups = resolver.RepositoryResolver([repository(moto, bucket="not-there")])
        with pytest.raises(errors.NotFound, match="not-there"):
            await lookups.resolve(reference("model://main/digits"))
        lookups.close()

    async def test_wrong_credentials_are_denied_without_telling_them(self, moto: str) -> None:
        place = S3Place(moto)
        place.put("digits", ONNX)
        place.resolver.close()
        _check_keys(moto, after=0)
        lookups = resolver.RepositoryResolver([repository(moto, prefix="team/models", key="stranger")])
        try:
            with pytest.raises(errors.PermissionDenied) as caught:
                await lookups.resolve(reference("model://main/digits"))
        finally:
            _check_keys(moto, after=10**9)
            lookups.close()
        assert "very secret" not in str(caught.value)

    async def test_a_silent_endpoint_is_unavailable_within_the_bound(self) -> None:
        limits = options.Limits(timeout_s=1.0, connect_timeout_s=1.0, read_timeout_s=1.0)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            lookups = resolver.RepositoryResolver([repository(url)], limits)
            began = time.monotonic()
            with pytest.raises(errors.Unavailable, match="main"):
                await lookups.resolve(reference("model://main/digits"))
            assert time.monotonic() - began < 30
            lookups.close()

    async def test_nobody_listening_is_unavailable(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        lookups = resolver.RepositoryResolver([repository(url)])
        with pytest.raises(errors.Unavailable, match="main"):
            await lookups.resolve(reference("model://main/digits"))
        lookups.close()

    async def test_keys_come_from_files_as_they_are_now(self, moto: str, tmp_path: pathlib.Path) -> None:
        place = S3Place(moto)
        place.put("digits", ONNX)
        place.resolver.close()
        names = options.FileCredentials(access_key_id=tmp_path / "id", secret_access_key=tmp_path / "secret")
        declared = options.S3Repository(
            name="main", bucket="bucket", endpoint_url=moto, path_style=True, credentials=names
        )
        lookups = resolver.RepositoryResolver([declared])
        with pytest.raises(errors.Unavailable, match="credentials"):
            await lookups.resolve(reference("model://main/team/models/digits"))
        for value in ("first", "second"):
            names.access_key_id.write_text(f"{value}\n")
            names.secret_access_key.write_text(value)
            await lookups.resolve(reference("model://main/team/models/digits"))
            access = lookups.access("s3://bucket/team/models/digits")
            assert isinstance(access, port.S3Access)
            assert (access.access_key_id, access.secret_access_key) == (value, value)
            assert (access.endpoint_url, access.path_style) == (moto, True)
            assert value not in repr(access).replace(f"access_key_id='{value}'", "")
        lookups.close()

    def test_keys_come_from_the_environment(self, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODELS_ID", "id")
        monkeypatch.delenv("MODELS_SECRET", raising=False)
        names = options.EnvironmentCredentials(access_key_id="MODELS_ID", secret_access_key="MODELS_SECRET")
        declared = options.S3Repository(name="main", bucket="bucket", credentials=names)
        lookups = resolver.RepositoryResolver([declared])
        with pytest.raises(errors.Unavailable, match="MODELS_SECRET"):
            lookups.access("s3://bucket/digits")
        monkeypatch.setenv("MODELS_SECRET", "secret")
        access = lookups.access("s3://bucket/digits")
        assert isinstance(access, port.S3Access)
        assert (access.access_key_id, access.secret_access_key) == ("id", "secret")
        lookups.close()

    def test_the_longest_prefix_decides_who_reads(self) -> None:
        wide = options.S3Repository(name="wide", bucket="bucket", region="wide")
        narrow = options.S3Repository(name="narrow", bucket="bucket", prefix="/team/models/", region="narrow")
        lookups = resolver.RepositoryResolver([wide, narrow])
        regions = {
            path: access.region
            for path in ("team/models/digits", "team/models-too/digits", "digits")
            if isinstance(access := lookups.access(f"s3://bucket/{path}"), port.S3Access)
        }
        assert regions == {"team/models/digits": "narrow", "team/models-too/digits": "wide", "digits": "wide"}
        lookups.close()


class TestSites:
    async def test_an_archive_is_one_file_whose_framework_must_be_said(self, site: SitePlace) -> None:
        site.site.put("team/digits.tar.gz", b"packed")
        with pytest.raises(errors.InvalidField, match=r"framework: .*say one of"):
            await site.resolver.resolve(reference("model://main/digits.tar.gz"))
        found = await site.resolver.resolve(reference("model://main/digits.tar.gz", source.Framework.ONNXRUNTIME))

        assert [(file.path, file.size_bytes) for file in found.files] == [("digits.tar.gz", 6)]
        assert found.layout is source.Layout.ARCHIVE
        assert await site.resolver.resolve(reference(found.uri, source.Framework.ONNXRUNTIME)) == found

    async def test_a_single_file_is_version_1(self, site: SitePlace) -> None:
        site.site.put("team/some/net.onnx", b"weights")
        found = await site.resolver.resolve(reference("model://main/some/net.onnx"))

        assert [(file.path, file.size_bytes) for file in found.files] == [("1/model.onnx", 7)]
        assert found.framework is source.Framework.ONNXRUNTIME
        assert (found.layout, found.uri) == (source.Layout.FILE, f"{site.site.url}/team/some/net.onnx")

    async def test_a_directory_of_such_a_name_says_so_with_a_slash(self, site: SitePlace) -> None:
        site.put("odd.onnx", ONNX)
        found = await site.resolver.resolve(reference("model://main/odd.onnx/"))

        assert (found.layout, len(found.files)) == (source.Layout.TREE, len(ONNX))
        assert await site.resolver.resolve(reference(found.uri)) == found

    async def test_the_secret_is_sent_read_anew_and_never_told(self, site: SitePlace, tmp_path: pathlib.Path) -> None:
        site.put("digits", ONNX)
        secret = tmp_path / "secret"
        declared = options.HttpRepository(
            name="main", url=f"{site.site.url}/team", authorization=options.Secret(file=secret)
        )
        lookups = resolver.RepositoryResolver([declared])
        with pytest.raises(errors.Unavailable, match="credentials"):
            await lookups.resolve(reference("model://main/digits"))
        for value in ("Bearer one", "Bearer two"):
            secret.write_text(f"{value}\n")
            site.site.authorizations.clear()
            await lookups.resolve(reference("model://main/digits"))
            access = lookups.access(site.direct("digits"))
            assert set(site.site.authorizations) == {value}
            assert access == port.HttpAccess(authorization=value)
            assert value not in repr(access)
        secret.write_text("two\nlines: of a header")
        with pytest.raises(errors.Unavailable, match="one line"):
            lookups.access(site.direct("digits"))
        lookups.close()

    async def test_the_nearest_url_decides_who_reads(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "secret").write_text("narrow")
        narrow = options.Secret(file=tmp_path / "secret")
        lookups = resolver.RepositoryResolver(
            [
                options.HttpRepository(name="wide", url="https://host"),
                options.HttpRepository(name="narrow", url="https://host/team", authorization=narrow),
            ]
        )
        told = {
            uri: access.authorization
            for uri in ("https://HOST/team/digits/", "https://host/team-two/digits/", "https://host/digits/")
            if isinstance(access := lookups.access(uri), port.HttpAccess)
        }
        assert list(told.values()) == ["narrow", "", ""]
        lookups.close()


async def test_a_token_for_google_is_sent_and_given_to_sidecars(gcs: web_stores.Gcs, tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").write_text("ya29.short-lived\n")
    token = options.Secret(file=tmp_path / "token")
    declared = options.GcsRepository(name="main", bucket="bucket", endpoint_url=gcs.url, token=token)
    lookups = resolver.RepositoryResolver([declared])
    access = lookups.access("gs://bucket/digits")

    assert access == port.GcsAccess(endpoint_url=gcs.url, bearer_token="ya29.short-lived")
    assert "ya29" not in repr(access)
    lookups.close()


def test_a_name_declared_twice_is_refused(tmp_path: pathlib.Path) -> None:
    twice = [options.FileRepository(name="main", root=tmp_path)] * 2
    with pytest.raises(ValueError, match="twice"):
        resolver.RepositoryResolver(twice)


def _check_keys(endpoint_url: str, *, after: int) -> None:
    request = urllib.request.Request(
        f"{endpoint_url}/moto-api/reset-auth", data=str(after).encode(), headers={"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(request, timeout=10).close()

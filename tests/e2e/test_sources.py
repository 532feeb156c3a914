"""Models from a web server, end to end: what the server finds there, the sidecar fetches and the worker serves."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator

import grpc
import pytest

from protos.tms.v1 import common_pb2
from tests.e2e import models
from tests.support import system as systems
from tests.support import web_stores

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # real programs start, load and stop

X = [1.0, 2.0, 3.0, 4.0]


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Iterator[web_stores.Site]:
    """Serves model ``one`` as a directory, as a file and in archives, one of which means harm."""
    models.double(tmp_path / "repository", "one")
    root = tmp_path / "site"
    root.mkdir()
    shutil.copytree(tmp_path / "repository" / "one", root / "one")
    shutil.copy(root / "one" / "1" / "model.onnx", root / "single.onnx")
    shutil.make_archive(str(root / "packed"), "gztar", tmp_path / "repository", "one")
    shutil.make_archive(str(root / "packed"), "zip", root / "one")
    (root / "harm.zip").write_bytes(b"PK, it says")
    made = web_stores.Site(root)
    yield made
    made.close()


@pytest.fixture
def system(tmp_path: pathlib.Path, site: web_stores.Site) -> Iterator[systems.System]:
    with systems.running(tmp_path, tmp_path / "repository", f"--repository=web={site.url}") as running:
        yield running


def test_a_web_server_gives_models_in_every_form(system: systems.System, site: web_stores.Site) -> None:
    lease = system.active(
        systems.model("tree", "model://web/one"),
        systems.model("file", f"{site.url}/single.onnx"),
        systems.model("tar", "model://web/packed.tar.gz", framework="onnxruntime"),
        systems.model("zip", "model://web/packed.zip", framework="onnxruntime"),
    )

    for name in ("tree", "file", "tar", "zip"):
        assert systems.infer(lease.endpoint, name, [1, 4], X) == [2.0, 4.0, 6.0, 8.0]
    assert all(each.state == common_pb2.MODEL_STATE_READY for each in lease.model_statuses)
    # The same bytes again come from the cache.
    asked = len(site.authorizations)
    (again,) = (system.active(systems.model("again", "model://web/packed.zip", framework="onnxruntime")),)
    assert systems.infer(again.endpoint, "again", [1, 4], X) == [2.0, 4.0, 6.0, 8.0]
    assert len(site.authorizations) == asked + 1, "only the server looked"


def test_what_is_wrong_with_it_is_said(system: systems.System) -> None:
    with pytest.raises(grpc.RpcError) as missing:
        system.create(systems.model("never", "model://web/never.zip", framework="onnxruntime"))
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    ended = system.until(
        system.create(systems.model("harm", "model://web/harm.zip", framework="onnxruntime")).id,
        lambda now: now.HasField("end"),
    )
    assert "InvalidArchive" in f"{ended.end}"

"""Models on a claim or on the nodes: the same folder in the pods of servers and of workers, to be read."""

from __future__ import annotations

import pathlib
import tomllib

import pydantic
import pytest

from tests.unit.deploy import charts
from tms_server import sections, settings
from tms_server.backends.kubernetes import options, pod
from tms_server.model import ids, resources
from tms_server.ports import backend

FOLDERS = (options.Folder(path="/tms/repositories/a", claim="models"), options.Folder(path="/b", host_path="/srv/b"))


def test_sidecars_find_them_where_the_server_does() -> None:
    made = pod.pod(_spec(), _options(FOLDERS))
    (sidecar,) = made["initContainers"]
    volumes = {each["name"]: each for each in made["volumes"]}
    mounts = {each["mountPath"]: each for each in sidecar["volumeMounts"]}
    assert len(volumes) == len(made["volumes"])
    claim, host = (volumes[mounts[folder.path]["name"]] for folder in FOLDERS)
    assert claim["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert host["hostPath"] == {"path": "/srv/b", "type": "Directory"}
    assert all(mounts[folder.path]["readOnly"] for folder in FOLDERS)


def test_the_server_mounts_them_too() -> None:
    values = {"repositories": {"shared": {"claim": "models"}, "node": {"host_path": "/srv/models", "path": "/models"}}}
    shape = charts.only(charts.render(values), "Deployment", "tms")["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in shape["volumes"]}
    mounts = {each["mountPath"]: each for each in shape["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/tms/repositories/shared"]["name"]]["persistentVolumeClaim"]["claimName"] == "models"
    assert volumes[mounts["/models"]["name"]]["hostPath"]["path"] == "/srv/models"


def test_a_web_server_has_a_secret_and_nothing_to_mount() -> None:
    objects = charts.render({"repositories": {"web": {"url": "https://host/models", "existingSecret": "web-secret"}}})
    said = tomllib.loads(charts.only(objects, "ConfigMap", "tms")["data"]["tms.toml"])["repositories"]["web"]
    shape = charts.only(objects, "Deployment", "tms")["spec"]["template"]["spec"]
    mounts = {each["name"]: each["mountPath"] for each in shape["containers"][0]["volumeMounts"]}
    assert said == {"url": "https://host/models", "secret_file": "/tms/keys/web/secret"}
    assert mounts["keys-web"] == "/tms/keys/web"
    assert "models-web" not in mounts


@pytest.mark.parametrize(
    ("chosen", "word"),
    [
        ({"bucket": "b", "claim": "c"}, "path"),
        ({"path": "/a", "claim": "c", "host_path": "/b"}, "either"),
        ({"path": "/a", "host_path": "b"}, "absolute"),
    ],
)
def test_what_cannot_be_meant_is_refused(chosen: dict[str, str], word: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=word):
        sections.Repository.model_validate(chosen)


def test_local_workers_have_no_volumes(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "tms.toml"
    file.write_text('[repositories.m]\npath = "/models"\nclaim = "c"\n')
    with pytest.raises(settings.SettingsError, match=r"repositories\.m: claim"):
        settings.load({}, file)


def _spec() -> backend.LaunchSpec:
    return backend.LaunchSpec(
        group_id=ids.GroupId("w-0123456789abcdef"),
        namespace=ids.DEFAULT_NAMESPACE,
        worker=resources.WorkerSpec(),
        endpoint=resources.Endpoint("w-0123456789abcdef.serving.svc", 8000, 8001, 8002),
        token="secret",
    )


def _options(folders: tuple[options.Folder, ...]) -> options.Options:
    return options.Options(
        namespace="serving",
        installation_id=ids.InstallationId("i-0123456789abcdef"),
        dial="tms.serving.svc:30345",
        sidecar_image="tms/sidecar:0",
        programs={"tms-worker": options.Program(image="tms/worker:0")},
        folders=folders,
    )

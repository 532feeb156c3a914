from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from tms_server import __main__ as program
from tms_server import settings, wiring
from tms_server.backends.processes import commands
from tms_server.model import ids


def parse(*arguments: str) -> settings.Settings:
    return settings.from_arguments(settings.parser().parse_args(arguments))


def test_nothing_has_to_be_said(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    found = parse()
    assert found.data_dir == tmp_path / "tms"
    assert found.database == f"sqlite:///{tmp_path}/tms/tms.db"
    assert (found.api.address, found.api.port, found.metrics.port) == ("127.0.0.1", 30345, 30346)
    assert (found.backend, found.default_pool.max_workers) == ("processes", 4)


def test_flags_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "tms.toml"
    file.write_text('[api]\nport = 1\naddress = "127.0.0.2"\n[timing]\nheartbeat_s = 3.0\n')
    monkeypatch.setenv("TMS_CONFIG", str(file))
    monkeypatch.setenv("TMS_API__PORT", "2")
    monkeypatch.setenv("TMS_TIMING__HEARTBEAT_S", "4")
    found = parse("--timing-heartbeat-s=5")
    assert (found.api.address, found.api.port, found.timing.heartbeat_s) == ("127.0.0.2", 2, 5.0)


def test_repositories_come_from_flags_and_file(tmp_path: pathlib.Path) -> None:
    found = parse(f"--repository=models={tmp_path}", "--repository=far=s3://bucket/some/prefix")
    assert found.repositories["models"].path == tmp_path
    far = found.repositories["far"]
    assert (far.bucket, far.prefix, far.keys.source) == ("bucket", "some/prefix", "environment")
    others = parse("--repository=web=https://host/models", "--repository=google=gs://bucket/some/prefix").repositories
    assert others["web"].url == "https://host/models"
    assert (others["google"].gcs_bucket, others["google"].prefix) == ("bucket", "some/prefix")


PODS = "backend = 'kubernetes'\n[kubernetes]\nworker_image = 'w'\nsidecar_image = 's'\n"
MUTUAL = "client_ca = 'c'\nsidecar_certificate = 'c'\nsidecar_key = 'c'"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[api]\nprot = 1", "api.prot"),
        ("colour = 1", "colour"),
        ("[api]\nport = 70000", "api.port"),
        ("[metrics]\naddress = 3", "metrics.address"),
        ("[tls]\ncertificate = 'x'", "tls"),
        ("[repositories.a]\nbucket = 'b'\npath = '/p'", "repositories.a"),
        ("[repositories.a]\nurl = 'https://h/?q'", "repositories.a.url"),
        ("[repositories.a]\nbucket = 'b'\nsecret_file = '/s'", "repositories.a"),
        ("[log]\nlevel = 'loud'", "log.level"),
        ("images = ['here/*', 'registry/*/worker']", "images: 'registry/*/worker' is no rule"),
        ("not toml", "config"),
        ("[pools.a]\nmin_workers = 5", "pools.a"),
        ("[pools.a]\nimage = 'i'\ncommand = 'c'", "pools.a"),
        (f"{PODS}[pools.a]\nprofile = 'nope'", "pools.a.profile"),
        (f"{PODS}[default_pool]\ncommand = 'nope'", "default_pool.command"),
        (f"{PODS}namespace = 'Bad_NS'", "kubernetes.namespace"),
        (f"{PODS}[tls]\ncertificate = 'c'\nkey = 'c'\nca = 'c'\n{MUTUAL}", "tls.client_ca"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: pathlib.Path, text: str, named: str) -> None:
    file = tmp_path / "tms.toml"
    file.write_text(text)
    with pytest.raises(settings.SettingsError) as caught:
        parse(f"--config={file}")
    assert str(caught.value).startswith(named)


def test_an_unknown_variable_of_a_section_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMS_API__PROT", "1")
    with pytest.raises(settings.SettingsError, match=r"api\.prot"):
        parse()


def test_a_file_that_is_not_there_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(settings.SettingsError, match="cannot be read"):
        parse(f"--config={tmp_path / 'none'}")


@pytest.mark.parametrize("place", [{"api": {"address": "0.0.0.0"}}, {"metrics": {"address": "::"}}])
def test_beyond_this_machine_needs_tls_or_a_word(place: dict[str, Any], tmp_path: pathlib.Path) -> None:
    with pytest.raises(settings.SettingsError, match="beyond this machine"):
        settings.load(place, None)
    told = {**place, "api": {**place.get("api", {}), "allow_plain": True}}
    assert settings.load(told, None).api.allow_plain
    tls = {"certificate": tmp_path, "key": tmp_path, "ca": tmp_path}
    assert settings.load({**place, "tls": tls}, None).tls.ca == tmp_path


def test_sidecars_dial_loopback_where_the_server_listens_everywhere() -> None:
    found = settings.load({"api": {"address": "0.0.0.0", "allow_plain": True}}, None)
    assert found.dial_host == "127.0.0.1"


def test_every_plain_setting_has_a_description_and_a_flag() -> None:
    helped = settings.parser().format_help()
    for key, field in settings.leaves():
        assert field.description, key
        assert "--" + key.replace(".", "-").replace("_", "-") in helped


def test_the_settings_are_printed_without_their_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "tms.toml"
    file.write_text(
        '[repositories.a]\nbucket = "b"\n[repositories.a.keys]\nsource = "static"\nsecret_access_key = "hush"\n'
    )
    monkeypatch.setattr("sys.argv", ["tms-server", "--print-config", f"--config={file}"])
    program.main()
    printed = capsys.readouterr().out
    assert json.loads(printed)["repositories"]["a"]["bucket"] == "b"
    assert "hush" not in printed


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////a@b?c", "sqlite:////a@b?c"),
        ("postgresql://u:hush@h:1/db?sslmode=require", "postgresql://u@h:1/db?sslmode=require"),
        ("postgresql://h/db?user=u&password=hush&sslpassword=hush", "postgresql://h/db?user=u"),
        ("postgres://u:hu?sh@hush@h/db", "postgres://u@h/db"),
    ],
)
def test_the_password_of_the_database_is_not_shown(url: str, shown: str) -> None:
    made = settings.load({"database_url": url}, None)
    assert made.database == url
    assert made.model_dump(mode="json")["database_url"] == shown
    assert "hush" not in repr(made)


def test_wrong_settings_end_the_program_with_the_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tms-server", "--api-port=many"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert "api.port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('backend = "kubernetes"\n', "kubernetes.worker_image"),
        ('backend = "pods"\n', "backend"),
        ("[tls]\nmanaged = true\n", "tls.managed"),
        ("[kubernetes]\nstrict = true\n", "watch_nodes"),
        ("[kubernetes.profiles.Big]\n", "kubernetes.profiles"),
        ('[kubernetes.profiles.big.cache]\nkind = "claim"\n', "claim"),
        ('[kubernetes.profiles.big.cache]\nkind = "host_path"\npath = "cache"\n', "path"),
        ("[kubernetes.profiles.big]\nnode_selectors = {}\n", "kubernetes.profiles.big.node_selectors"),
        ("[pools.big]\nmax_workers = 0\n", "pools.big.max_workers"),
    ],
)
def test_what_cannot_be_meant_of_kubernetes_names_the_key(tmp_path: pathlib.Path, text: str, named: str) -> None:
    file = tmp_path / "tms.toml"
    file.write_text(text)
    with pytest.raises(settings.SettingsError, match=named.replace(".", r"\.")):
        parse("--config", str(file))


def test_pools_are_declared_by_namespace_and_name(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "tms.toml"
    file.write_text(
        'backend = "kubernetes"\nkubernetes = {worker_image = "w", sidecar_image = "s", '
        'profiles = {gpu = {}}, programs = {triton = {image = "t"}}}\n'
        '[pools."vision/big"]\nprofile = "gpu"\ngpus = 1\n[pools.small]\nimage = "triton:1"\n'
        '[pools.triton]\ncommand = "triton"\n'
    )
    kept = wiring.pools(parse("--config", str(file)))
    assert {f"{namespace}/{name}": spec.worker.profile for (namespace, name), spec in kept.items()} == {
        "vision/big": "gpu",
        "default/small": "",
        "default/triton": "",
        "default/default": "",
    }
    assert {name: spec.worker.command for (_, name), spec in kept.items() if spec.worker.command} == {
        "triton": "triton"
    }


def test_variables_of_local_workers_and_sidecars_are_those_of_the_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "tms.toml"
    file.write_text('[workers.environment]\nTMS_SIDECAR_WORKER_HEADERS_FILE = "/etc/tms/headers"\n')
    found = wiring.process_options(parse("--config", str(file)), ids.InstallationId("i"), "127.0.0.1:1")
    assert commands.sidecar_environment(found)["TMS_SIDECAR_WORKER_HEADERS_FILE"] == "/etc/tms/headers"

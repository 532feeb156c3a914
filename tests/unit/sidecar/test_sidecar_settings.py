from __future__ import annotations

import pathlib

import pytest

from sidecar import settings, values


@pytest.fixture
def flags(tmp_path: pathlib.Path) -> dict[str, str]:
    (tmp_path / "token").write_text("secret")
    return {
        "--server": "127.0.0.1:9000",
        "--worker-id": "g-1",
        "--token-file": str(tmp_path / "token"),
        "--worker-endpoint": "127.0.0.1:8000:8001:8002",
        "--model-repository": str(tmp_path / "models"),
        "--data-dir": str(tmp_path / "data"),
        "--cache-dir": str(tmp_path / "cache"),
    }


def parse(flags: dict[str, str]) -> settings.Settings:
    return settings.parse([word for pair in flags.items() for word in pair])


def test_flags_are_enough(flags: dict[str, str]) -> None:
    parsed = parse(flags)

    assert parsed.worker == values.Endpoint("127.0.0.1", 8000, 8001, 8002)
    assert parsed.log_level == "info"


def test_the_environment_stands_in_for_flags(flags: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for flag, value in flags.items():
        monkeypatch.setenv("TMS_SIDECAR_" + flag[2:].replace("-", "_").upper(), value)
    monkeypatch.setenv("TMS_SIDECAR_LOG_LEVEL", "debug")

    assert settings.parse([]).log_level == "debug"
    assert settings.parse(["--log-level", "error"]).log_level == "error"


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("--server", "nowhere", "HOST:PORT"),
        ("--worker-endpoint", "127.0.0.1:8000", "HOST:HTTP:GRPC:METRICS"),
        ("--worker-endpoint", "127.0.0.1:0:1:2", "1 to 65535"),
        ("--token-file", "/nonexistent", "is not a file"),
        ("--server-key", "/nonexistent", "is not a file"),
        ("--log-level", "loud", "'info'"),
        ("--drain-timeout", "0", "greater than 0"),
    ],
)
def test_a_bad_flag_is_named_with_its_remedy(
    flags: dict[str, str], flag: str, value: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        parse(flags | {flag: value})

    said = capsys.readouterr().err
    assert exited.value.code == 2
    assert f"{flag} (or TMS_SIDECAR_" in said
    assert remedy in said


def test_what_is_missing_is_named(flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    del flags["--cache-dir"]

    with pytest.raises(SystemExit):
        parse(flags)

    assert "--cache-dir (or TMS_SIDECAR_CACHE_DIR): is required" in capsys.readouterr().err


def test_a_certificate_needs_its_key(flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(flags | {"--server-cert": flags["--token-file"]})

    assert "give both or neither" in capsys.readouterr().err


def test_an_ipv6_worker_stands_in_brackets() -> None:
    assert settings.parse_endpoint("[::1]:1:2:3") == values.Endpoint("::1", 1, 2, 3)

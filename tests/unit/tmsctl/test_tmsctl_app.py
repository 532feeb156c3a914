"""The command line as a whole: its help, its usage errors, commands that need no server, what it imports."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from tmsctl import __main__ as program
from tmsctl import errors

LEASE_VERBS = ("create", "renew", "release", "get", "list", "watch", "status", "explain", "events", "logs")
COMMANDS = [
    *(f"lease {verb}" for verb in LEASE_VERBS),
    *(f"lease name {verb}" for verb in ("set", "list", "delete")),
    *(f"pool {verb}" for verb in ("create", "list", "get", "delete")),
    *(f"target {verb}" for verb in ("add", "list", "use", "remove")),
    "worker list",
    "run",
    "version",
]
HEAVY = ("grpc", "google.protobuf", "yaml", "rich")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tmsctl(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for variable in ("TMS_TARGET", "TMS_NAMESPACE", "TMS_TIMEOUT", "TMS_DEBUG"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = program.main(arguments)
        except SystemExit as done:
            code = int(done.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(tmsctl: Run, command: str) -> None:
    code, out, err = tmsctl(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Usage: tmsctl {command}" in out


def test_help_lists_every_exit_code(tmsctl: Run) -> None:
    _, out, _ = tmsctl("--help")
    for code, meaning in errors.MEANINGS.items():
        assert f"{code.value:<4} {meaning}" in out


def test_helping_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom tmsctl import __main__\n"
        "try: __main__.main(['lease', 'create', '--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ("lease create", "--model"),
        ("lease create -m a=b://c --hold 1", "--hold"),
        ("lease create -m a=b://c --dry-run --wait", "--wait"),
        ("lease create -m a=b://c --wait-timeout soon", "--wait-timeout"),
        ("lease create -m a=b://c --timeout 0s", "--timeout"),
        ("lease renew l-1 --for ever", "--for"),
        ("lease release", "LEASE"),
        ("lease release l-1 --all", "LEASE"),
        ("lease list --state sleeping", "--state"),
        ("lease list --label a", "--label"),
        ("pool create p --memory 1G", "--memory"),
        ("pool create p --idle-linger 1", "--idle-linger"),
        ("lease list --target h:x", "address"),
        ("target add a/b h:1", "name"),
        ("target add a h", "address"),
        ("target add a h:1 --ca /nowhere", "--ca"),
        ("target add a h:1 --cert /nowhere", "--cert"),
    ],
)
def test_a_usage_error_names_its_field_and_sends_nothing(tmsctl: Run, arguments: str, field: str) -> None:
    code, out, err = tmsctl(*arguments.split())
    assert (code, out) == (errors.Exit.USAGE, "")
    assert err.startswith(f"error: {field}: ")


@pytest.mark.parametrize("arguments", ["lease create --hodl 1m", "lease get", "lease list -o xml", "leese"])
def test_what_the_parser_refuses_is_a_usage_error(tmsctl: Run, arguments: str) -> None:
    code, out, err = tmsctl(*arguments.split())
    assert (code, out) == (errors.Exit.USAGE, "")
    assert "Error: " in err


def test_an_unknown_target_is_not_found(tmsctl: Run) -> None:
    code, _, err = tmsctl("lease", "list", "--target", "prod")
    assert code == errors.Exit.NOT_FOUND
    assert "tmsctl target add prod" in err


def test_a_server_that_is_not_there_is_unavailable(tmsctl: Run) -> None:
    code, out, err = tmsctl("lease", "get", "l-1", "--target", "127.0.0.1:1", "--timeout", "300ms")
    assert (code, out) == (errors.Exit.UNAVAILABLE, "")
    assert "trying again" in err
    assert "error: the server at 127.0.0.1:1 does not answer" in err


def test_a_target_may_stand_before_the_command_and_the_one_after_it_wins(
    tmsctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMS_TARGET", "127.0.0.1:1")  # also puts it back afterwards
    before = tmsctl("--target", "127.0.0.1:2", "lease", "list", "--timeout", "0.2s")
    after = tmsctl("--target", "127.0.0.1:2", "lease", "list", "--timeout", "0.2s", "--target", "127.0.0.1:3")
    assert "127.0.0.1:2 does not answer" in before[2]
    assert "127.0.0.1:3 does not answer" in after[2]


def test_targets_are_added_used_listed_and_removed(tmsctl: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    assert tmsctl("target", "add", "local", "127.0.0.1:30345")[0] == 0
    assert tmsctl("target", "add", "prod", "tms.example:443", "--ca", str(tmp_path / "ca.pem"))[0] == 0
    assert json.loads(tmsctl("target", "list", "-o", "json")[1])["targets"] == [
        {"name": "local", "used": True, "address": "127.0.0.1:30345", "ca": "", "cert": "", "key": "", "tls": False},
        {
            "name": "prod",
            "used": False,
            "address": "tms.example:443",
            "ca": str(tmp_path / "ca.pem"),
            "cert": "",
            "key": "",
            "tls": True,
        },
    ]
    assert tmsctl("target", "use", "prod") == (0, tmsctl("target", "use", "prod")[1], "")
    assert "*" in tmsctl("target", "list")[1].splitlines()[2]
    assert tmsctl("target", "remove", "prod", "-o", "name")[1] == "local\n"
    code, _, err = tmsctl("target", "remove", "prod")
    assert code == errors.Exit.NOT_FOUND
    assert "Saved targets: local." in err


def test_the_version_is_printed(tmsctl: Run) -> None:
    number = tmsctl("version")[1].strip()
    assert json.loads(tmsctl("version", "-o", "json")[1]) == {"version": number}


def test_a_defect_is_a_sentence_not_a_traceback(tmsctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr("importlib.metadata.version", lambda _: 1 / 0)
    code, _, err = tmsctl("version")
    assert code == errors.Exit.FAILED
    assert err.splitlines() == ["error: internal: ZeroDivisionError: division by zero", "  TMS_DEBUG=1 shows where."]


@pytest.mark.parametrize(
    ("words", "offered"),
    [("tmsctl lease l", "list"), ("tmsctl lease list --target p", "prod"), ("tmsctl tar", "target")],
)
def test_the_shell_completes(tmp_path: pathlib.Path, tmsctl: Run, words: str, offered: str) -> None:
    tmsctl("target", "add", "prod", "h:1")
    done = _complete(words, tmp_path)
    assert offered in done.stdout.split()


def test_completion_is_silent_when_the_server_is_away(tmp_path: pathlib.Path) -> None:
    done = _complete("tmsctl lease get --target 127.0.0.1:1 l", tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def _complete(words: str, home: pathlib.Path) -> subprocess.CompletedProcess[str]:
    asked = {"_TMSCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    environment = {**asked, "XDG_CONFIG_HOME": str(home), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "tmsctl"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

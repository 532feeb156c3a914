"""What the worker's logs say, and what they never hold."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker import logs
from gpu_worker.engine import border

SCRIPT = """
import structlog
from gpu_worker import logs
logs.configure(logs.Settings())
def work(given):
    held = given
    raise ValueError("told " + held[:0])
try:
    work("a-secret-of-a-client")
except ValueError:
    structlog.get_logger().exception("work.failed")
"""


def test_a_traceback_tells_the_way_and_no_values() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    (line,) = ran.stderr.splitlines()
    said = json.loads(line)
    assert said["event"] == "work.failed"
    assert "work" in [frame["name"] for frame in said["exception"][0]["frames"]]
    assert "a-secret-of-a-client" not in line


LEVELS = """
import logging, structlog, sys
from gpu_worker import logs
logs.configure(logs.Settings(file=sys.argv[1]))
log = structlog.get_logger()
def say(turn):
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("said", turn=turn)
    logging.getLogger("lib").warning("library %s", turn)
say("first")
logs.update({"log_info": False, "log_verbose_level": 1})
say("second")
logs.update({"log_warning": False, "log_error": False, "log_verbose_level": 0})
say("third")
logs.update({"log_format": "ISO8601", "log_error": True})
log.error("told\\nmore", key="a\\nb", number=1)
logs.update({"log_format": "default"})
log.error("last")
"""


def test_changes_hold_at_once_for_every_logger_and_both_forms(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "log"
    ran = subprocess.run(
        [sys.executable, "-c", LEVELS, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stderr == ""
    lines = path.read_text().splitlines()
    text = lines.pop(-2)
    said = [json.loads(line) for line in lines]
    shown = [(each.get("turn"), each["level"]) for each in said if each["event"] == "said"]
    assert shown == [
        *(("first", level) for level in ("info", "warning", "error")),
        *(("second", level) for level in ("debug", "warning", "error")),
    ]
    assert [each["event"] for each in said if each["event"] != "said"] == ["library first", "library second", "last"]
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z E \d+ <string>:\d+\] "told\\nmore" key="a\\nb" number=1', text
    )


def test_a_log_that_cannot_be_written_to_harms_nobody() -> None:
    script = "import structlog\nfrom gpu_worker import logs\nlogs.configure(logs.Settings(file='/dev/full'))\n"
    script += "structlog.get_logger().error('lost')\nprint('alive')"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "alive\n"


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"log_file": "/tmp/x"}, border.ErrorKind.UNSUPPORTED, "file location can not be updated through network"),
        ({"log_format": "xml"}, border.ErrorKind.INVALID_ARGUMENT, "'log_format': must be one of default, ISO8601"),
        ({"log_info": 1}, border.ErrorKind.INVALID_ARGUMENT, "'log_info': must be a boolean"),
        ({"log_verbose_level": -1}, border.ErrorKind.INVALID_ARGUMENT, "'log_verbose_level'"),
        ({"log_verbose_level": True}, border.ErrorKind.INVALID_ARGUMENT, "'log_verbose_level'"),
        ({"log_warnings": True}, border.ErrorKind.INVALID_ARGUMENT, "unknown log setting 'log_warnings'"),
        ({"info": True}, border.ErrorKind.INVALID_ARGUMENT, "unknown log setting 'info'"),
    ],
)
def test_what_cannot_be_set_is_refused_and_nothing_changes(
    changes: dict[str, Any], kind: border.ErrorKind, words: str
) -> None:
    with pytest.raises(border.InferenceError, match=re.escape(words)) as caught:
        logs.Settings().changed({"log_error": False, **changes})
    assert caught.value.kind is kind
    assert logs.current() == logs.Settings()


NAMES = st.sampled_from([*logs.Settings().told(), "x"])
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_change_is_made_whole_or_refused(changes: dict[str, Any]) -> None:
    try:
        changed = logs.Settings().changed(changes)
    except border.InferenceError:
        return
    assert changed.told() == logs.Settings().told() | changes


def test_other_processes_follow_and_hear_of_no_change_twice() -> None:
    told: list[dict[str, Any]] = []
    before = logs.current().told()
    end = logs.listen(lambda settings: told.append(settings.told()))
    try:
        logs.follow({**before, "log_file": "of another process", "log_verbose_level": 4})
        logs.follow({**before, "log_verbose_level": 4})
        assert logs.current().told() == before | {"log_verbose_level": 4}
    finally:
        logs.follow(before)
        end()
        end()
    logs.update({})
    assert told == [before, before | {"log_verbose_level": 4}, before]

"""How long models take to load is learnt by watching them come."""

from __future__ import annotations

from tests.unit.core import builders as b
from tms_server.autoscale import window
from tms_server.model import bundle, group

ONE = b.M("one")
KEY = bundle.models(b.L("l", (ONE,)).pending())[0].key
S = group.ModelState


def seen(*states: tuple[float, group.ModelState]) -> window.Track:
    track: window.Track | None = None
    for at, state in states:
        track = window.follow(track, b.a_report("w1", b.model_report(ONE, state), received=at))
    assert track is not None
    return track


def test_from_the_first_sight_until_it_is_ready() -> None:
    track = seen((0, S.PENDING), (3, S.FETCHING), (9, S.LOADING), (12, S.READY), (20, S.READY))
    assert track.loads == {KEY: b.s(12)}


def test_a_model_that_was_there_tells_nothing() -> None:
    assert seen((0, S.READY), (5, S.READY)).loads == {}


def test_a_reload_is_measured_anew() -> None:
    track = seen((0, S.LOADING), (10, S.READY), (20, S.LOADING), (22, S.READY))
    assert track.loads == {KEY: b.s(2)}


def test_what_is_gone_is_forgotten() -> None:
    track = window.follow(seen((0, S.LOADING), (10, S.READY)), b.a_report("w1", received=20))
    assert (track.loads, track.begun) == ({}, {})

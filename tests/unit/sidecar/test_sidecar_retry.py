from __future__ import annotations

import threading

import pytest

from sidecar import errors
from sidecar.fetching import progress, retry

PASSING = errors.ModelFailed("StoreUnavailable", "no answer", retryable=True)


class Read:
    """Fails so often, each time after so many bytes."""

    def __init__(self, *failures: BaseException, each_bytes: int = 0) -> None:
        self._failures = list(failures)
        self._each_bytes = each_bytes
        self.moved_bytes = 0
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        self.moved_bytes += self._each_bytes
        if self._failures:
            raise self._failures.pop(0)
        return "done"


def run(read: Read, budget: retry.Budget | None = None, stop: threading.Event | None = None) -> tuple[str, list[float]]:
    pauses: list[float] = []
    retries = retry.Retries(stop or threading.Event(), budget, pauses.append)
    return retries.run(read, lambda: read.moved_bytes), pauses


def test_what_passes_is_tried_again_after_growing_jittered_pauses() -> None:
    said, pauses = run(Read(*[PASSING] * 4))

    assert said == "done"
    assert len(pauses) == 4
    assert all(0 <= pause <= bound for pause, bound in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True))


def test_what_brings_nothing_ends_and_what_brings_bytes_goes_on() -> None:
    fruitless = Read(*[PASSING] * 20)
    with pytest.raises(errors.ModelFailed):
        run(fruitless)

    assert fruitless.tries == 5
    assert run(Read(*[PASSING] * 20, each_bytes=1))[0] == "done"


def test_all_reads_spend_from_one_budget_that_success_fills() -> None:
    budget = retry.Budget(tokens=3, earned=1)
    with pytest.raises(errors.ModelFailed):
        run(Read(*[PASSING] * 4, each_bytes=1), budget)
    with pytest.raises(errors.ModelFailed):
        run(Read(PASSING), budget)

    assert run(Read(), budget)[0] == "done"
    assert run(Read(PASSING), budget)[0] == "done"


@pytest.mark.parametrize(
    "error",
    [
        errors.ModelFailed("SourceChanged", "it did"),
        errors.ModelFailed("CredentialsExpired", "they did", retryable=True),
        errors.ModelFailed("NoRoomOnDisk", "full", retryable=True),
        errors.ModelFailed("StoreUnavailable", "much later", retryable=True, retry_after_s=3600),
        OSError(28, "full"),
    ],
)
def test_what_waiting_here_does_not_mend_ends_at_once(error: BaseException) -> None:
    read = Read(error)
    with pytest.raises(type(error)):
        run(read)

    assert read.tries == 1


def test_a_pause_that_was_asked_for_is_made() -> None:
    _said, [pause] = run(Read(errors.ModelFailed("StoreUnavailable", "busy", retryable=True, retry_after_s=20)))

    assert 20 <= pause < 21


def test_a_fetch_that_was_called_off_is_no_failure() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(errors.Stopped):
        run(Read(PASSING), stop=stop)


def test_the_rate_is_that_of_the_last_seconds_and_counts_what_moved() -> None:
    told = progress.Progress(1000)
    told.found(500)
    assert told.look(100.0) == progress.Seen(500, 1000, 0)
    told.add(100)
    assert told.look(102.0) == progress.Seen(600, 1000, 50)
    assert told.look(117.0) == progress.Seen(600, 1000, 0)
    told.add(300)
    assert told.look(118.0).bytes_per_s == 18
    told.add(900)
    assert told.fetched_bytes == 1000

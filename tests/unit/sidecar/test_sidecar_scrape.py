"""What pages of metrics mean: ours, an unmodified Triton's, and nonsense."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar import scrape

TRITON = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="digits",version="1"} 12
# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="digits",reason="BACKEND",version="1"} 0
nv_inference_request_failure{model="digits",reason="CANCELED",version="1"} 0
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="digits",version="1"} 3
nv_inference_pending_request_count{model="digits",version="2"} 2
nv_inference_pending_request_count{model="words",version="1"} 0
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.25
nv_gpu_utilization{gpu_uuid="GPU-2"} 0.875
# HELP nv_pinned_memory_pool_total_bytes Pinned memory pool total memory size, in bytes
# TYPE nv_pinned_memory_pool_total_bytes gauge
nv_pinned_memory_pool_total_bytes 268435456
"""


def test_what_an_unmodified_triton_does_not_say_is_absent() -> None:
    page = scrape.parse(TRITON)

    assert page.in_flight == {"digits": 5, "words": 0}
    assert not page.in_flight_known
    assert page.latency == {}
    assert page.gpu_utilization_permille == 875


def test_a_page_without_a_gpu_says_nothing_of_one() -> None:
    assert scrape.parse("").gpu_utilization_permille is None
    assert scrape.parse('nv_gpu_utilization{gpu_uuid="x"} 0').gpu_utilization_permille == 0


def test_our_own_families_win_and_versions_add_up() -> None:
    name = scrape.LATENCY
    page = scrape.parse(
        TRITON
        + 'tms_inference_in_flight{model="digits",version="1"} 7\n'
        + f'{name}{{model="digits",version="1",le="0.0002"}} 1\n'
        + f'{name}{{model="digits",version="1",le="20"}} 4\n'
        + f'{name}{{model="digits",version="1",le="+Inf"}} 5\n'
        + f'{name}{{model="digits",version="2",le="+Inf"}} 2\n'
    )

    assert (page.in_flight, page.in_flight_known) == ({"digits": 7}, True)
    assert page.latency == {"digits": ((200, 1), (20_000_000, 4), (0, 7))}


def test_names_come_back_as_they_were() -> None:
    page = scrape.parse('tms_inference_in_flight{model="a\\\\b\\"c\\nd,e}",version="1"} 1')

    assert page.in_flight == {'a\\b"c\nd,e}': 1}


@given(st.text() | st.lists(st.sampled_from(TRITON.splitlines())).map("\n".join))
def test_no_page_breaks_the_reader(text: str) -> None:
    page = scrape.parse(text)

    assert all(count >= 0 for count in page.in_flight.values())


@given(st.sampled_from(["NaN", "-1", "1e400", "x", "-Inf", "+Inf"]))
def test_values_that_mean_nothing_are_passed_over(value: str) -> None:
    assert scrape.parse(f'tms_inference_in_flight{{model="a"}} {value}') == scrape.NOTHING

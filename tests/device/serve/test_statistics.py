"""Counts of what was asked, from any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from toolchain.device.serve.statistics import Statistics


def test_nothing_was_asked_yet() -> None:
    figures = Statistics().of("cars", "1")
    assert (figures["last_inference"], figures["inference_count"]) == (0, 0)
    assert figures["inference_stats"]["fail"] == {"count": 0, "ns": 0}


def test_no_request_is_lost_between_threads() -> None:
    statistics = Statistics()

    def one(index: int) -> None:
        if index % 4:
            statistics.succeeded("cars", pictures=2, queue_s=0.1, model_s=0.2, total_s=0.4)
        else:
            statistics.failed("cars", 0.1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(400)))
    figures = statistics.of("cars", "1")
    assert (figures["execution_count"], figures["inference_count"]) == (300, 600)
    assert figures["inference_stats"] == {
        "success": {"count": 300, "ns": 120_000_000_000},
        "fail": {"count": 100, "ns": 10_000_000_000},
        "queue": {"count": 300, "ns": 30_000_000_000},
        "compute_infer": {"count": 300, "ns": 60_000_000_000},
    }
    statistics.forget("cars")
    assert statistics.of("cars", "1")["execution_count"] == 0

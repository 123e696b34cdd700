"""The line that says how busy a server is."""

from __future__ import annotations

import pytest

from headway.server.activity import ActivityReport, activity
from headway.wire.to_client import Snapshot

BEFORE = Snapshot(
    num_prompt_tokens=1000,
    num_generation_tokens=500,
    num_prefix_query_tokens=1000,
    num_prefix_hit_tokens=900,
    num_preemptions=7,
)


def test_a_busy_engine_is_told_in_rates_since_the_last_line_and_in_the_load_now() -> None:
    now = BEFORE._replace(
        num_prompt_tokens=2000,
        num_generation_tokens=13_000,
        num_prefix_query_tokens=2000,
        num_prefix_hit_tokens=1150,
        num_running=48,
        num_waiting=2,
        num_preparing=1,
        num_blocks_total=200,
        num_blocks_free=100,
        num_blocks_evictable=20,
    )
    assert activity(BEFORE, now, 10.0) == (
        "in 100.0 tokens/s, out 1,250.0 tokens/s, running 48, waiting 3, KV 40.0%, prefix hits 25.0%"
    )


def test_an_engine_that_began_anew_makes_no_rate_negative() -> None:
    line = activity(BEFORE, Snapshot(num_running=1, num_generation_tokens=3), 10.0)
    assert line == "in 0.0 tokens/s, out 0.0 tokens/s, running 1, waiting 0, KV 0.0%, prefix hits -"


def test_an_idle_engine_is_not_told_of() -> None:
    assert activity(BEFORE, BEFORE, 10.0) is None
    assert activity(BEFORE, BEFORE._replace(num_blocks_total=9, num_requests_ended=4), 10.0) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_running": 1}, "running 1"),
        ({"num_waiting": 1, "paused": True}, "waiting 1, KV 0.0%, prefix hits -, paused"),
        ({"num_generation_tokens": 510}, "out 1.0 tokens/s"),
        ({"num_prompt_tokens": 1010}, "in 1.0 tokens/s"),
        ({"num_running": 1, "num_preemptions": 9}, "preempted 2"),
    ],
)
def test_work_of_any_kind_is_told(change: dict[str, int], words: str) -> None:
    line = activity(BEFORE, BEFORE._replace(**change), 10.0)
    assert line is not None and words in line


def test_each_report_counts_from_the_one_before_by_the_clock(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "headway")
    course = [(0.0, BEFORE)]
    report = ActivityReport(lambda: course[-1][1], clock=lambda: course[-1][0])
    for seconds, tokens in ((10.0, 600), (30.0, 1000), (40.0, 1000), (50.0, 1001)):
        course.append((seconds, BEFORE._replace(num_generation_tokens=tokens)))
        report.report()
    told = [record.message.partition("out ")[2].partition(",")[0] for record in caplog.records]
    assert told == ["10.0 tokens/s", "20.0 tokens/s", "0.1 tokens/s"]

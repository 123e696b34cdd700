"""`headway top`: what happened between two looks at a server."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from rich.console import Console

from headway import cli
from headway.commands import top
from headway.commands.remote_server import RemoteServer
from headway.top.page import Page
from headway.top.screen import Screen, drawn
from headway.top.window import Window, quantile

INF = float("inf")


def page(taken: float, *lines: str, running: int = 0, paused: int = 0) -> Page:
    labels = '{model_name="tiny",engine="0"}'
    text = [
        f"headway:num_requests_running{labels} {running}",
        f"headway:num_slots{labels} 8",
        f"headway:engine_paused{labels} {paused}",
        *lines,
    ]
    return Page("\n".join(text) + "\n", taken)


def counter(name: str, value: float, **labels: str) -> str:
    described = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"headway:{name}{{{described}}} {value}"


def histogram(name: str, **counts: int) -> list[str]:
    bounds = {key.removeprefix("le_").replace("_", "."): count for key, count in counts.items()}
    return [f'headway:{name}_bucket{{le="{bound}"}} {count}' for bound, count in bounds.items()]


def shown(screen: Screen, window: Window, trouble: str | None = None) -> str:
    console = Console(width=100, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(screen.picture(window, trouble))
    return captured.get()


def test_a_rate_is_the_difference_of_two_pages_per_second() -> None:
    window = Window(
        page(10, counter("generation_tokens_total", 100)), page(14, counter("generation_tokens_total", 300))
    )
    assert window.rate("generation_tokens_total") == 50


def test_a_window_without_time_has_no_rate() -> None:
    one = page(10, counter("generation_tokens_total", 100))
    assert Window(one, one).rate("generation_tokens_total") == 0


def test_a_counter_that_began_anew_counts_from_zero() -> None:
    """The server was started again between two looks."""
    window = Window(page(0, counter("generation_tokens_total", 1000)), page(1, counter("generation_tokens_total", 30)))
    assert window.count("generation_tokens_total") == 30


def test_counts_are_kept_apart_by_a_label_and_nothing_is_left_out_in_silence() -> None:
    before = page(0, counter("request_success_total", 5, finished_reason="stop"))
    now = page(
        1,
        counter("request_success_total", 5, finished_reason="stop"),
        counter("request_success_total", 2, finished_reason="error"),
    )
    assert Window(before, now).counts_by("request_success_total", "finished_reason") == {"error": 2}


def test_a_share_of_nothing_is_unknown() -> None:
    assert Window(page(0), page(1)).share("prefix_cache_hits_total", "prefix_cache_queries_total") is None


@pytest.mark.parametrize(
    ("share", "value"),
    [(0.25, 0.5), (0.5, 1.0), (0.75, 2.0), (1.0, 3.0)],
)
def test_a_quantile_lies_evenly_in_its_bucket(share: float, value: float) -> None:
    assert quantile([(1.0, 2), (3.0, 4), (INF, 4)], share) == value


def test_a_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert quantile([(1.0, 1), (INF, 10)], 0.99) == 1.0


def test_a_quantile_of_nothing_is_unknown() -> None:
    assert quantile([(1.0, 0), (INF, 0)], 0.5) is None
    assert quantile([], 0.5) is None


def test_a_latency_is_that_of_its_window_alone() -> None:
    name = "time_to_first_token_seconds"
    before = page(0, *histogram(name, le_1_0=100, le_2_0=100, **{"le_+Inf": 100}))
    now = page(1, *histogram(name, le_1_0=100, le_2_0=110, **{"le_+Inf": 110}))
    assert Window(before, now).latency(name).median == 1.5


def test_a_histogram_that_began_anew_counts_from_zero() -> None:
    name = "time_to_first_token_seconds"
    before = page(0, *histogram(name, le_1_0=0, le_2_0=100, **{"le_+Inf": 100}))
    now = page(1, *histogram(name, le_1_0=10, le_2_0=10, **{"le_+Inf": 10}))
    assert Window(before, now).latency(name).median == 0.5


class TestSeveralEngines:
    def page(self, taken: float, *tokens: int, paused: int = 0) -> Page:
        lines = []
        for engine, count in enumerate(tokens):
            labels = f'{{model_name="tiny",engine="{engine}"}}'
            lines += [
                f"headway:num_requests_running{labels} {engine + 1}",
                f"headway:num_slots{labels} 8",
                f"headway:engine_paused{labels} {int(engine < paused)}",
                f"headway:kv_cache_usage_perc{labels} {0.2 + 0.4 * engine}",
                f"headway:generation_tokens_total{labels} {count}",
                f'headway:cache_config_info{{engine="{engine}",num_gpu_blocks="500",block_size="16"}} 1',
            ]
        return Page("\n".join(lines) + "\n", taken)

    def test_sums_are_shown_and_a_line_for_each_engine(self) -> None:
        text = shown(Screen("http://x"), Window(self.page(0, 0, 100), self.page(2, 40, 300)))
        rows = [line.split() for line in text.splitlines()]
        assert [word for word in rows[2] if "·" not in word] == ["running", "3", "of", "16", "slots"]
        assert [word for row in rows if row[:1] == ["KV"] for word in row if "·" not in word] == [
            "KV",
            "cache",
            "40%",
            "of",
            "1,000",
            "blocks",
            "of",
            "16",
            "tokens",
        ]
        assert rows[-2:] == [["0", "1", "0", "20%", "20.0"], ["1", "2", "0", "60%", "100.0"]]
        assert "KV 40%" in Screen("http://x").line(Window(self.page(0, 0, 100), self.page(2, 40, 300)))

    def test_an_engine_that_began_anew_does_not_hide_what_the_others_count(self) -> None:
        assert Window(self.page(0, 1_000, 100), self.page(1, 30, 150)).count("generation_tokens_total") == 80

    def test_it_says_how_many_are_paused(self) -> None:
        for paused, words in ((1, "1 of 2 engines paused"), (2, "  paused")):
            now = self.page(1, 0, 0, paused=paused)
            assert words in shown(Screen("http://x"), Window(now, now))


def test_a_page_of_another_server_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="headway:num_requests_running"):
        Page("process_cpu_seconds_total 1\n", 0)


def test_the_picture_names_model_load_and_trouble() -> None:
    window = Window(page(0), page(2, running=4, paused=1))
    text = shown(Screen("http://x"), window, "cannot reach a server at http://x: gone")
    assert "tiny" in text
    assert "of 8 slots" in text
    assert "paused" in text
    assert "cannot reach a server" in text


def test_a_course_shows_its_greatest_number_highest() -> None:
    assert drawn(deque([0.0, 1.0, 2.0])) == "▁▄█"
    assert drawn(deque([0.0, 0.0])) == "▁▁"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Page | ValueError]]:
    """What a server answers, look by look."""
    answers: list[Page | ValueError] = []

    def next_page(server: RemoteServer) -> Page:
        answer = answers.pop(0)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    monkeypatch.setattr(top, "page_of", next_page)
    monkeypatch.setattr(top.time, "sleep", lambda seconds: None)
    yield answers


def test_a_server_that_does_not_answer_for_a_while_is_watched_on(
    looks: list[Page | ValueError], capsys: pytest.CaptureFixture[str]
) -> None:
    looks += [
        page(0, counter("generation_tokens_total", 0)),
        ValueError("cannot reach a server"),
        page(4, counter("generation_tokens_total", 40)),
    ]
    assert cli.main(["top", "http://x", "-n", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "cannot reach a server"
    assert "out 10 tokens/s" in second


def test_ctrl_c_is_the_usual_way_to_leave(looks: list[Page | ValueError], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    looks += [page(0)]
    monkeypatch.setattr(top.time, "sleep", interrupted)
    assert cli.main(["top"]) == 0


@pytest.mark.parametrize(
    ("url", "words"), [("localhost", "is no URL of a server"), ("http://127.0.0.1:1", "cannot reach a server")]
)
def test_without_a_server_one_line_says_so(url: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", url]) == 2
    assert words in capsys.readouterr().err

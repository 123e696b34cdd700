"""What `headway top` shows: one window as a picture for the terminal, or as a line."""

from __future__ import annotations

from collections import defaultdict, deque

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headway.top.window import Latency, Window

_WIDTH = 24  # characters of a bar or of a course
_LEVELS = " ▁▂▃▄▅▆▇█"
_TIMES = {
    "first token": "time_to_first_token_seconds",
    "between tokens": "inter_token_latency_seconds",
    "whole request": "e2e_request_latency_seconds",
    "in the queue": "request_queue_time_seconds",
}


class Screen:
    """Draws windows, one after another, and keeps the courses of some numbers."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._courses: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_WIDTH))

    def picture(self, window: Window, trouble: str | None = None) -> RenderableType:
        """The window, drawn. trouble: why there is no newer one."""
        head = Text.assemble((window.now.model, "bold"), "  ", self._url, f"  over {window.seconds:.1f} s")
        if num_paused := int(window.now.value("engine_paused")):
            num = len(window.now.engines)
            head.append("  paused" if num_paused == num else f"  {num_paused} of {num} engines paused", "bold yellow")
        parts: list[RenderableType] = [head]
        if trouble is not None:
            parts.append(Text(trouble, "bold red"))
        blank = Text()
        parts += [blank, self._load(window), blank, self._rates(window), blank, _times(window), blank, _ends(window)]
        if len(window.now.engines) > 1:
            parts += [blank, _engines(window)]
        return Group(*parts)

    def line(self, window: Window) -> str:
        """The window in one line, for a log."""
        now = window.now
        first, between = window.latency(_TIMES["first token"]), window.latency(_TIMES["between tokens"])
        hits = window.share("prefix_cache_hits_total", "prefix_cache_queries_total")
        return (
            f"in {window.rate('prompt_tokens_total'):,.0f} tokens/s, out {window.rate('generation_tokens_total'):,.0f} "
            f"tokens/s, {window.rate('request_success_total'):,.1f} requests/s, "
            f"running {now.value('num_requests_running'):.0f}, waiting {now.value('num_requests_waiting'):.0f}, "
            f"KV {now.mean('kv_cache_usage_perc'):.0%}, "
            f"hits {_percent(hits)}, first token p50 {_seconds(first.median)} p99 {_seconds(first.p99)}, "
            f"between tokens p50 {_seconds(between.median)} p99 {_seconds(between.p99)}"
        )

    def _load(self, window: Window) -> Table:
        now = window.now
        running, usage = now.value("num_requests_running"), now.mean("kv_cache_usage_perc")
        blocks, sizes = (now.labels("cache_config_info", label) for label in ("num_gpu_blocks", "block_size"))
        room = f"of {sum(map(int, blocks)):,} blocks of {sizes[0]} tokens" if blocks and sizes else ""
        table = _table()
        slots = now.value("num_slots")
        table.add_row("running", f"{running:,.0f}", _bar(running / slots), f"of {slots:,.0f} slots")
        table.add_row("waiting", f"{now.value('num_requests_waiting'):,.0f}", self._course("waiting", window), "")
        table.add_row("KV cache", f"{usage:.0%}", _bar(usage), room)
        hits = window.share("prefix_cache_hits_total", "prefix_cache_queries_total")
        table.add_row("prefix hits", _percent(hits), "" if hits is None else _bar(hits), "of prompt tokens")
        return table

    def _rates(self, window: Window) -> Table:
        table = _table()
        for what, unit in (("tokens in", "tokens/s"), ("tokens out", "tokens/s"), ("requests", "ended/s")):
            course = self._course(what, window)
            table.add_row(what, f"{self._courses[what][-1]:,.1f}", course, unit)
        table.add_row("preemptions", f"{window.count('num_preemptions_total'):,.0f}", "", "in the window")
        return table

    def _course(self, what: str, window: Window) -> str:
        """Add the number of this window to its course, and draw the course."""
        match what:
            case "waiting":
                value = window.now.value("num_requests_waiting")
            case "tokens in":
                value = window.rate("prompt_tokens_total")
            case "tokens out":
                value = window.rate("generation_tokens_total")
            case _:
                value = window.rate("request_success_total")
        course = self._courses[what]
        course.append(value)
        return drawn(course)


def drawn(course: deque[float]) -> str:
    """Numbers as columns of characters; the greatest is the highest."""
    most = max(course)
    if most <= 0:
        return _LEVELS[1] * len(course)
    return "".join(_LEVELS[max(1, round(value / most * (len(_LEVELS) - 1)))] for value in course)


def _bar(share: float) -> str:
    full = round(min(max(share, 0.0), 1.0) * _WIDTH)
    return "█" * full + "·" * (_WIDTH - full)


def _table(*head: str) -> Table:
    table = Table(box=None, show_header=bool(head), header_style="bold", pad_edge=False)
    if head:
        for index, name in enumerate(head):
            table.add_column(name, justify="right" if index else "left", min_width=14 if index == 0 else 9)
    else:
        table.add_column(min_width=14)
        table.add_column(justify="right", min_width=9)
        table.add_column(min_width=_WIDTH)
        table.add_column(style="dim")
    return table


def _times(window: Window) -> Table:
    table = _table("latency", "p50", "p99")
    for what, name in _TIMES.items():
        found: Latency = window.latency(name)
        table.add_row(what, _seconds(found.median), _seconds(found.p99))
    return table


def _engines(window: Window) -> Table:
    """A line for each engine."""
    now = window.now
    table = _table("engine", "running", "waiting", "KV", "out tokens/s")
    for engine in now.engines:
        running, waiting = (now.value(f"num_requests_{what}", engine=engine) for what in ("running", "waiting"))
        usage, rate = (
            now.value("kv_cache_usage_perc", engine=engine),
            window.rate("generation_tokens_total", engine=engine),
        )
        table.add_row(engine, f"{running:,.0f}", f"{waiting:,.0f}", f"{usage:.0%}", f"{rate:,.1f}")
    return table


def _ends(window: Window) -> Text:
    ends = window.counts_by("request_success_total", "finished_reason")
    answers = window.counts_by("http_requests_total", "status")
    said = [f"{reason} {count:,.0f}" for reason, count in sorted(ends.items())]
    statuses = [f"{status} {count:,.0f}" for status, count in sorted(answers.items())]
    return Text(f"ended: {', '.join(said) or 'none'}    HTTP: {', '.join(statuses) or 'none'}", "dim")


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"

"""The figures of one run under load: as a flat row, and as the block of text that vLLM's users know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headway.bench.load import LoadResult

Row = dict[str, Any]
"""Figures by name, flat: strings, numbers, booleans, None; units are in the names."""

_LATENCIES = (
    ("TTFT", "Time to First Token"),
    ("TPOT", "Time per Output Token (excl. 1st token)"),
    ("ITL", "Inter-token Latency"),
    ("E2EL", "End-to-end Latency"),
)
_WIDTH = 50


def percentile(samples: Sequence[float], percent: float) -> float | None:
    """The percentile; None for too few samples: p99 takes 100, the median 2."""
    needed = math.ceil(round(100 / (100 - percent), 6))
    return float(np.percentile(samples, percent)) if len(samples) >= needed else None


def figures(result: LoadResult) -> Row:
    """The figures of a run. A figure with too few samples is None."""
    good = [outcome for outcome in result.outcomes if outcome.error is None]
    input_tokens = sum(outcome.prompt_tokens for outcome in good)
    output_tokens = sum(outcome.output_tokens for outcome in good)
    seconds = result.duration_s
    row: Row = {
        "successful_requests": len(good),
        "failed_requests": len(result.outcomes) - len(good),
        "duration_s": seconds,
        "total_input_tokens": input_tokens,
        "total_generated_tokens": output_tokens,
        "request_throughput_req_per_s": len(good) / seconds,
        "output_throughput_tok_per_s": output_tokens / seconds,
        "total_throughput_tok_per_s": (input_tokens + output_tokens) / seconds,
        "max_send_lag_ms": result.send_lag_s * 1000,
    }
    graded = [outcome.right for outcome in good if outcome.right is not None]
    if graded:
        row |= {"right_answers": sum(graded), "wrong_answers": len(graded) - sum(graded)}
    samples = {
        "ttft": [outcome.ttft_s for outcome in good if outcome.ttft_s is not None],
        "tpot": [
            (outcome.latency_s - outcome.ttft_s) / (outcome.output_tokens - 1)
            for outcome in good
            if outcome.ttft_s is not None and outcome.output_tokens > 1
        ],
        "itl": [gap for outcome in good for gap in outcome.itl_s],
        "e2el": [outcome.latency_s for outcome in good],
    }
    for name, seconds_each in samples.items():
        milliseconds = [value * 1000 for value in seconds_each]
        row[f"mean_{name}_ms"] = float(np.mean(milliseconds)) if milliseconds else None
        row[f"median_{name}_ms"] = percentile(milliseconds, 50)
        row[f"p99_{name}_ms"] = percentile(milliseconds, 99)
    return row


def block(row: Mapping[str, str | int | float | bool | None]) -> str:
    """A row as text."""
    lines = [
        f"{' Serving Benchmark Result ':=^{_WIDTH}}",
        _line("Successful requests:", row["successful_requests"]),
        _line("Failed requests:", row["failed_requests"]),
    ]
    if row.get("max_concurrency") is not None:
        lines.append(_line("Maximum request concurrency:", row["max_concurrency"]))
    if row.get("request_rate_req_per_s") is not None:
        lines.append(_line("Request rate configured (RPS):", row["request_rate_req_per_s"]))
    lines += [
        _line("Benchmark duration (s):", row["duration_s"]),
        _line("Total input tokens:", row["total_input_tokens"]),
        _line("Total generated tokens:", row["total_generated_tokens"]),
        _line("Request throughput (req/s):", row["request_throughput_req_per_s"]),
        _line("Output token throughput (tok/s):", row["output_throughput_tok_per_s"]),
        _line("Total token throughput (tok/s):", row["total_throughput_tok_per_s"]),
        _line("Latest send behind schedule (ms):", row["max_send_lag_ms"]),
    ]
    if "right_answers" in row:
        lines.append(_line("Right answers:", row["right_answers"]))
        lines.append(_line("Wrong answers:", row["wrong_answers"]))
    too_few = False
    for name, title in _LATENCIES:
        lines.append(f"{title:-^{_WIDTH}}")
        for label in ("Mean", "Median", "P99"):
            value = row[f"{label.lower()}_{name.lower()}_ms"]
            too_few |= value is None
            lines.append(_line(f"{label} {name} (ms):", value))
    lines.append("=" * _WIDTH)
    if too_few:
        lines.append("n/a: too few samples; a mean takes 1, a median 2, a P99 100.")
    return "\n".join(lines)


def _line(label: str, value: str | int | float | bool | None) -> str:
    shown = "n/a" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {shown:<9}".rstrip()

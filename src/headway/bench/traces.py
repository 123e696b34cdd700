"""Readers of recorded traffic: the arrival times of requests, their lengths, and the prefixes that they shared.

There are two formats; the first line of a file shows which it is:

    Azure LLM inference (CSV)       TIMESTAMP, ContextTokens, GeneratedTokens
    Mooncake (JSON lines)           timestamp (ms), input_length, output_length, hash_ids (one per 512 tokens)

Other columns and keys are ignored. A row that does not parse raises TraceError with file, line and value.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MOONCAKE_BLOCK_TOKENS = 512


class TraceError(ValueError):
    """A trace that cannot be read; the message names file, line and value."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}")


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request, without its text.

    arrival_s: seconds after the first request of the trace.
    prompt_tokens, output_tokens: lengths, in tokens.
    prefix_ids: one id per `block_tokens` tokens of the prompt; the last block may be shorter. Equal ids stand for equal
        tokens. Empty if the trace has none.
    block_tokens: tokens per prefix id; a fraction after lengths were scaled down.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()
    block_tokens: float = MOONCAKE_BLOCK_TOKENS


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """The requests of a trace of either format, in the order of the file.

    Raises TraceError for a row that does not parse and for a file of another format; OSError as `open` does.
    """
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline().strip()
    if first.startswith("{"):
        return read_mooncake(path)
    if "ContextTokens" in first:
        return read_azure(path)
    raise TraceError(path, 1, f"neither an Azure header nor a Mooncake record: {first[:80]!r}")


def read_azure(path: Path) -> Iterator[TraceRequest]:
    """The requests of an Azure CSV trace."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}.difference(rows.fieldnames or ())
        if missing:
            raise TraceError(path, 1, f"columns missing: {', '.join(sorted(missing))}")
        start: float | None = None
        for row in rows:
            line = rows.line_num
            time = _timestamp(row["TIMESTAMP"], path, line)
            start = time if start is None else start
            yield TraceRequest(
                arrival_s=time - start,
                prompt_tokens=_count("ContextTokens", row["ContextTokens"], path, line),
                output_tokens=_count("GeneratedTokens", row["GeneratedTokens"], path, line),
            )


def read_mooncake(path: Path) -> Iterator[TraceRequest]:
    """The requests of a Mooncake JSON-lines trace. Empty lines are passed over."""
    with path.open(encoding="utf-8-sig") as file:
        start_ms: float | None = None
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            record = _record(text, path, line)
            time_ms = record["timestamp"]
            if isinstance(time_ms, bool) or not isinstance(time_ms, int | float) or not math.isfinite(time_ms):
                raise TraceError(path, line, f"timestamp must be a number of milliseconds, got {time_ms!r}")
            start_ms = time_ms if start_ms is None else start_ms
            ids = record.get("hash_ids", [])
            if not isinstance(ids, list):
                raise TraceError(path, line, f"hash_ids must be a list, got {ids!r}")
            yield TraceRequest(
                arrival_s=(time_ms - start_ms) / 1000,
                prompt_tokens=_count("input_length", record["input_length"], path, line),
                output_tokens=_count("output_length", record["output_length"], path, line),
                prefix_ids=tuple(_count("hash_ids", value, path, line) for value in ids),
            )


def scaled(
    requests: Iterable[TraceRequest],
    *,
    minutes: float | None = None,
    time_scale: float = 1.0,
    max_model_len: int | None = None,
) -> list[TraceRequest]:
    """Scale a trace down for a machine and a model. The result is in order of arrival and starts at 0 s.

    minutes: only the requests of the first `minutes` of the recording.
    time_scale: multiplies the times between arrivals; 0.5 replays twice as fast.
    max_model_len: the most tokens of a request, prompt and output. If the longest request has more, all lengths and
        the blocks of shared prefixes shrink by the same factor. No length becomes less than 1.

    Raises ValueError for a limit out of range, and if no request is left.
    """
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    if not (time_scale >= 0 and math.isfinite(time_scale)):
        raise ValueError(f"time_scale must be at least 0 and finite, got {time_scale}")
    if max_model_len is not None and max_model_len < 2:
        raise ValueError(f"max_model_len must be at least 2, got {max_model_len}")
    chosen = [request for request in requests if minutes is None or request.arrival_s < minutes * 60]
    if not chosen:
        raise ValueError("the trace has no requests" if minutes is None else f"no requests in {minutes} minutes")
    chosen.sort(key=lambda request: request.arrival_s)
    start = chosen[0].arrival_s
    longest = max(request.prompt_tokens + request.output_tokens for request in chosen)
    factor = 1.0 if max_model_len is None else min(1.0, max_model_len / longest)
    limit = max(2, longest) if max_model_len is None else max_model_len
    return [_shrunk(request, (request.arrival_s - start) * time_scale, factor, limit) for request in chosen]


def _shrunk(request: TraceRequest, arrival_s: float, factor: float, limit: int) -> TraceRequest:
    output_tokens = min(max(1, int(request.output_tokens * factor)), limit - 1)
    return replace(
        request,
        arrival_s=arrival_s,
        prompt_tokens=max(1, min(int(request.prompt_tokens * factor), limit - output_tokens)),
        output_tokens=output_tokens,
        block_tokens=request.block_tokens * factor,
    )


def _timestamp(text: Any, path: Path, line: int) -> float:
    """Seconds since the epoch; a time without a zone is taken as UTC."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise TraceError(path, line, f"TIMESTAMP must be a date and time, got {text!r}") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _count(name: str, value: Any, path: Path, line: int) -> int:
    """A whole number of at least 0, from an int or its decimal text."""
    text = str(value)
    if isinstance(value, int | str) and text.isascii() and text.isdecimal():
        return int(text)
    raise TraceError(path, line, f"{name} must be a whole number of at least 0, got {value!r}")


def _record(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise TraceError(path, line, f"not JSON ({error.msg}): {text.strip()[:80]!r}") from None
    if not isinstance(record, dict):
        raise TraceError(path, line, f"not a JSON object: {text.strip()[:80]!r}")
    missing = {"timestamp", "input_length", "output_length"}.difference(record)
    if missing:
        raise TraceError(path, line, f"keys missing: {', '.join(sorted(missing))}")
    return record

"""Reading recorded traffic and cutting it down to size."""

import json
from pathlib import Path

import pytest

from headway.bench.traces import TraceError, TraceRequest, read_trace, scaled

EXCERPTS = Path(__file__).parents[2] / "benchmarks" / "traces"


def written(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def azure(folder: Path, *rows: str) -> Path:
    return written(folder, "azure.csv", "TIMESTAMP,ContextTokens,GeneratedTokens", *rows)


def mooncake(folder: Path, *records: dict | str) -> Path:
    return written(folder, "m.jsonl", *(r if isinstance(r, str) else json.dumps(r) for r in records))


def test_azure_rows_become_requests_timed_from_the_first(tmp_path):
    path = azure(tmp_path, "2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:18:04.0319600,3180,8")
    first, second = read_trace(path)
    assert first == TraceRequest(arrival_s=0.0, prompt_tokens=4808, output_tokens=10)
    assert second.arrival_s == pytest.approx(60.052)
    assert (second.prompt_tokens, second.output_tokens, second.prefix_ids) == (3180, 8, ())


def test_azure_times_may_carry_a_zone_and_columns_may_be_more(tmp_path):
    path = written(
        tmp_path,
        "2024.csv",
        "region,TIMESTAMP,ContextTokens,GeneratedTokens",
        "x,2024-05-10 00:00:00.009930+00:00,2162,5",
        "x,2024-05-10 02:00:01.009930+02:00,2399,6",
    )
    assert [r.arrival_s for r in read_trace(path)] == [0.0, 1.0]


def test_mooncake_records_carry_the_ids_of_their_prefix_blocks(tmp_path):
    path = mooncake(
        tmp_path,
        {"timestamp": 2000, "input_length": 600, "output_length": 6, "hash_ids": [4, 9]},
        "",
        {"timestamp": 3500, "input_length": 40, "output_length": 1, "hash_ids": [4], "type": "chat"},
    )
    assert list(read_trace(path)) == [
        TraceRequest(arrival_s=0.0, prompt_tokens=600, output_tokens=6, prefix_ids=(4, 9)),
        TraceRequest(arrival_s=1.5, prompt_tokens=40, output_tokens=1, prefix_ids=(4,)),
    ]


@pytest.mark.parametrize(("name", "rows"), [("azure_2023_code.csv", 781), ("mooncake_synthetic.jsonl", 645)])
def test_the_excerpts_in_the_repository_are_read_whole(name, rows):
    requests = list(read_trace(EXCERPTS / name))
    assert len(requests) == rows
    for r in requests:
        assert not r.prefix_ids or len(r.prefix_ids) == -(-r.prompt_tokens // 512)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("yesterday,1,1", "TIMESTAMP must be a date and time, got 'yesterday'"),
        ("2023-11-16 18:17:03,-5,1", "ContextTokens must be a whole number of at least 0, got '-5'"),
        ("2023-11-16 18:17:03,5,1.5", "GeneratedTokens must be a whole number of at least 0, got '1.5'"),
        ("2023-11-16 18:17:03,5", "GeneratedTokens must be a whole number of at least 0, got None"),
    ],
)
def test_a_bad_azure_row_is_named_by_file_line_and_value(tmp_path, row, problem):
    path = azure(tmp_path, "2023-11-16 18:17:03,5,1", row)
    with pytest.raises(TraceError) as error:
        list(read_trace(path))
    assert str(error.value) == f"{path}, line 3: {problem}"


GOOD = {"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("{", "not JSON (Expecting property name enclosed in double quotes): '{'"),
        ("[1]", "not a JSON object: '[1]'"),
        ({"timestamp": 0}, "keys missing: input_length, output_length"),
        ({**GOOD, "timestamp": "now"}, "timestamp must be a number of milliseconds, got 'now'"),
        ({**GOOD, "input_length": 2.5}, "input_length must be a whole number of at least 0, got 2.5"),
        ({**GOOD, "output_length": True}, "output_length must be a whole number of at least 0, got True"),
        ({**GOOD, "hash_ids": 7}, "hash_ids must be a list, got 7"),
        ({**GOOD, "hash_ids": [1, -2]}, "hash_ids must be a whole number of at least 0, got -2"),
    ],
)
def test_a_bad_mooncake_record_is_named_by_file_line_and_value(tmp_path, record, problem):
    path = mooncake(tmp_path, GOOD, record)
    with pytest.raises(TraceError) as error:
        list(read_trace(path))
    assert str(error.value) == f"{path}, line 2: {problem}"


def test_a_file_of_neither_format_is_refused_with_its_first_line(tmp_path):
    path = written(tmp_path, "notes.txt", "dear diary")
    with pytest.raises(TraceError, match="neither an Azure header nor a Mooncake record: 'dear diary'"):
        read_trace(path)


def test_an_azure_header_without_a_needed_column_is_refused(tmp_path):
    path = written(tmp_path, "a.csv", "TIMESTAMP,ContextTokens", "2023-11-16 18:17:03,5")
    with pytest.raises(TraceError, match="line 1: columns missing: GeneratedTokens"):
        list(read_trace(path))


def request(arrival_s: float, prompt_tokens: int, output_tokens: int, *prefix_ids: int) -> TraceRequest:
    return TraceRequest(arrival_s, prompt_tokens, output_tokens, prefix_ids)


def test_scaling_without_limits_changes_nothing():
    requests = [request(0.0, 9, 3, 1), request(2.0, 4, 4)]
    assert scaled(requests) == requests


def test_minutes_keep_the_beginning_and_the_clock_starts_at_the_first_kept():
    requests = [request(59.0, 3, 1), request(5.0, 1, 1), request(60.0, 2, 1)]
    kept = scaled(requests, minutes=1)
    assert [(r.arrival_s, r.prompt_tokens) for r in kept] == [(0.0, 1), (54.0, 3)]


def test_the_time_factor_stretches_the_gaps():
    assert [r.arrival_s for r in scaled([request(1, 1, 1), request(5, 1, 1)], time_scale=0.5)] == [0.0, 2.0]


def test_lengths_shrink_by_one_factor_and_blocks_with_them():
    long, short = scaled([request(0, 9000, 1000, 1, 2), request(1, 500, 50, 1)], max_model_len=1000)
    assert (long.prompt_tokens, long.output_tokens) == (900, 100)
    assert (short.prompt_tokens, short.output_tokens) == (50, 5)
    assert long.block_tokens == short.block_tokens == pytest.approx(51.2)


def test_no_length_falls_below_one_nor_their_sum_above_the_model():
    requests = [request(0, 99_999, 1), request(0, 1, 99_999), request(0, 0, 0), request(0, 0, 100_000)]
    for r in scaled(requests, max_model_len=64):
        assert r.prompt_tokens >= 1
        assert r.output_tokens >= 1
        assert r.prompt_tokens + r.output_tokens <= 64


def test_what_already_fits_keeps_its_lengths():
    assert scaled([request(0, 10, 10)], max_model_len=20)[0].prompt_tokens == 10


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"minutes": 0}, "minutes must be above 0, got 0"),
        ({"time_scale": -1.0}, "time_scale must be at least 0 and finite, got -1.0"),
        ({"time_scale": float("inf")}, "time_scale must be at least 0 and finite, got inf"),
        ({"max_model_len": 1}, "max_model_len must be at least 2, got 1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, problem):
    with pytest.raises(ValueError, match=problem):
        scaled([request(0, 1, 1)], **limits)


def test_nothing_left_is_an_error_not_an_empty_benchmark():
    with pytest.raises(ValueError, match="the trace has no requests"):
        scaled([])
    with pytest.raises(ValueError, match=r"no requests in 0\.5 minutes"):
        scaled([request(31, 1, 1)], minutes=0.5)

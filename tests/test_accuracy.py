"""Token for token what `model.generate` says. A share of the matrix that `headway accuracy` runs whole."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from headway.accuracy.pair import TRANSPORTS
from headway.accuracy.subject import (
    BUDGETS,
    EMBEDDED,
    MODELS,
    PAIR_MODELS,
    POOLS,
    SCHEDULERS,
    Setting,
    Subject,
    settings,
    subjects,
)
from headway.cli import main
from headway.transfer.reader import Slice
from headway.transfer.shared_memory import SharedMemoryReader


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name: next(iter(subjects([name], Path(folder)))))


@pytest.mark.parametrize(
    ("model", "scheduler"), [*((model, "v2") for model in MODELS), *(("llama", name) for name in SCHEDULERS[:-1])]
)
def test_every_model_and_every_scheduler_with_a_pool_too_small(
    model: str, scheduler: str, subject: Callable[[str], Subject]
) -> None:
    outcome = subject(model).run(Setting(model, scheduler, 17, "small", prefix_caching=True))
    assert outcome.exact == outcome.prompts > 0
    assert (outcome.preemptions > 0) == (scheduler != "v0")


@pytest.mark.parametrize(  # every pair of two of them
    ("budget", "pool", "prefix_caching"),
    [(budget, pool, i % 2 == j) for i, budget in enumerate(BUDGETS) for j, pool in enumerate(POOLS)],
)
def test_every_budget_pool_and_cache(
    budget: int, pool: str, prefix_caching: bool, subject: Callable[[str], Subject]
) -> None:
    outcome = subject("llama").run(Setting("llama", "v2", budget, pool, prefix_caching))
    assert outcome.exact == outcome.prompts > 0
    assert (outcome.preemptions > 0) == (pool == "small")
    assert (outcome.cached_tokens > 0) == prefix_caching


@pytest.mark.parametrize(
    ("model", "transport", "pool"),
    [*(("llama", transport, "small") for transport in TRANSPORTS), ("gemma2", "shared-memory", "large")],
)
def test_a_prefill_and_a_decode_engine_answer_as_one(
    model: str, transport: str, pool: str, subject: Callable[[str], Subject]
) -> None:
    """In chunks, with prefixes that either side has, with preemptions, and sampled."""
    outcome = subject(model).run(Setting(model, "v2", 17, pool, prefix_caching=True, transport=transport))
    assert outcome.exact == outcome.prompts == 45  # 15 prompts twice, and once with another question each
    assert outcome.pulled_tokens > 0 and outcome.lost_pulls == 0
    assert outcome.cached_tokens > 0 and outcome.cached_on_p > 0
    assert (outcome.preemptions > 0) == (pool == "small")


def test_kv_that_is_not_that_of_the_prompt_is_found_out(
    subject: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first bytes of every block that arrives are lost."""
    read = SharedMemoryReader.read

    def read_less(reader: SharedMemoryReader, part: Slice) -> None:
        read(reader, part)
        for blocks in reader._memory.parts:
            blocks[part.targets, :64] = 0

    monkeypatch.setattr(SharedMemoryReader, "read", read_less)
    outcome = subject("llama").run(
        Setting("llama", "v2", 2048, "large", prefix_caching=False, transport="shared-memory")
    )
    assert outcome.exact < outcome.prompts / 2


def test_kv_goes_by_every_transport_for_the_models_that_keep_it_differently() -> None:
    ways = {(cell.model, cell.transport) for model in MODELS for cell in settings(model, ["v2"], BUDGETS, TRANSPORTS)}
    assert {(model, way) for model, way in ways if way is not None} == {
        (model, way) for model in MODELS if model in PAIR_MODELS for way in TRANSPORTS
    }
    assert {EMBEDDED, "llama", "qwen3", "gemma2"} <= set(PAIR_MODELS)


def test_a_wrong_token_is_found_out(subject: Callable[[str], Subject]) -> None:
    llama = subject("llama")
    token = llama.reference.outputs[3][-1]
    llama.reference.outputs[3][-1] = token + 1
    try:
        outcome = llama.run(Setting("llama", "v2", 64, "large", prefix_caching=True))
    finally:
        llama.reference.outputs[3][-1] = token
    assert outcome.exact == outcome.prompts - 2  # each prompt is asked twice


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--models=llama,bert", "must be of embedded, llama,"),
        ("--schedulers=v3", "must be of v0, v1, v2,"),
        ("--transports=pigeon", "must be of shared-memory,"),
        ("--budgets=many", "must be whole numbers in [8, 65536]"),
    ],
)
def test_an_unknown_choice_is_refused_in_one_line(option: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", option]) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1


def test_the_command_prints_a_row_per_setting_and_says_how_many_were_exact(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # a busy machine takes more seconds, which are wider
    of_one = ["accuracy", "--models", "llama", "--schedulers", "v2", "--budgets", "64"]
    assert main([*of_one, "--transports", "shared-memory"]) == 0
    out = capsys.readouterr().out
    assert "6 of 6 settings exact" in out and "shared-memory" in out and "…" not in out
    assert EMBEDDED in MODELS

"""Token for token what `model.generate` says. A share of the matrix that `headway accuracy` runs whole."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from headway.accuracy.subject import BUDGETS, EMBEDDED, MODELS, POOLS, SCHEDULERS, Setting, Subject, subjects
from headway.cli import main


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
        ("--budgets=many", "must be whole numbers in [8, 65536]"),
    ],
)
def test_an_unknown_choice_is_refused_in_one_line(option: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", option]) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1


def test_the_command_prints_a_row_per_setting_and_says_how_many_were_exact(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["accuracy", "--models", "llama", "--schedulers", "v2", "--budgets", "64"]) == 0
    assert "4 of 4 settings exact" in capsys.readouterr().out
    assert EMBEDDED in MODELS

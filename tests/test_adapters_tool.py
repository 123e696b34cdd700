"""`make adapters`: its table says which answers were equal; an environment that cannot be made ends it in one line."""

from types import SimpleNamespace

import pytest
from headway_lab.peers.environment import PeerMissing
from rich.console import Console

from tests.adapters.vllm_engine.comparison import differences
from tools import adapters
from tools.adapters import Summary


def report(row: str, column: str, *, failed: bool = False, when: str = "call") -> SimpleNamespace:
    return SimpleNamespace(when=when, failed=failed, user_properties=[("cell", (row, column, "9 equal")), ("more", 1)])


def test_the_table_has_a_cell_for_each_test_that_names_one() -> None:
    summary = Summary()
    summary.pytest_runtest_logreport(report("plain", "sync"))
    summary.pytest_runtest_logreport(report("plain", "async", failed=True))
    summary.pytest_runtest_logreport(report("one front end", "async"))
    summary.pytest_runtest_logreport(report("tight", "sync"))
    summary.pytest_runtest_logreport(report("tight", "async"))
    summary.pytest_runtest_logreport(report("teardown", "async", when="teardown"))
    console = Console(width=60, color_system=None)
    with console.capture() as printed:
        many, one = summary.tables()
        console.print(many, one)
    lines = [line.replace("│", " ").split() for line in printed.get().splitlines()]
    assert ["plain", "9", "equal", "FAILED"] in lines and ["tight", "9", "equal", "9", "equal"] in lines
    assert ["one", "front", "end", "9", "equal"] in lines
    assert "teardown" not in printed.get()


def test_an_environment_that_cannot_be_made_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def python() -> None:
        raise PeerMissing("vLLM could not be installed: no route to host")

    monkeypatch.setattr(adapters, "ENVIRONMENTS", (SimpleNamespace(python=python),))
    assert adapters.main([]) == 2
    assert capsys.readouterr().err == "vLLM could not be installed: no route to host\n"


ANSWER = {"tokens": [1, 2], "text": "ab", "logprobs": [[-0.5, -0.5], None], "stop_reason": None}


def test_equal_answers_may_differ_in_logprobs_by_the_order_of_adding() -> None:
    assert not differences([ANSWER], [{**ANSWER, "logprobs": [[-0.50001, -0.5], None]}])


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": [1, 3]},
        {"text": "abc"},
        {"stop_reason": 0},
        {"logprobs": [[-0.501, -0.5], None]},
        {"logprobs": [[-0.5, -0.5]]},
        {"logprobs": None},
    ],
    ids=str,
)
def test_any_other_difference_is_told(change: dict) -> None:
    (told,) = differences([ANSWER], [{**ANSWER, **change}])
    assert told.startswith("answer 0: ")
    assert differences([ANSWER], [])

"""`make clients`: which tests it runs, what it makes of their outcomes, and what it does where it cannot run."""

from types import SimpleNamespace

import pytest
from headway_lab.peers.environment import PeerMissing

from tests.clients import table
from tools import clients

REPORT = """<testsuites><testsuite>
<testcase classname="tests.clients.calls.test_openai" name="test_good"/>
<testcase classname="tests.clients.calls.test_openai" name="test_half[one]"/>
<testcase classname="tests.clients.calls.test_openai" name="test_half[two]"><failure/></testcase>
<testcase classname="tests.clients.calls.test_openai" name="test_broken"><error/></testcase>
<testcase classname="tests.clients.calls.test_openai" name="test_left_out"><skipped/></testcase>
</testsuite></testsuites>"""


def test_every_client_is_in_one_group() -> None:
    modules = [module for group in clients.GROUPS for module in group.modules]
    assert sorted(modules) == sorted(table.CLIENTS)


def test_a_test_with_a_failing_parameter_has_failed() -> None:
    passed, failed = clients.outcomes(REPORT)
    assert passed == {"test_openai::test_good"}
    assert failed == {"test_openai::test_half", "test_openai::test_broken"}


def test_an_environment_that_cannot_be_made_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def python() -> None:
        raise PeerMissing("npm is not here")

    monkeypatch.setattr(clients, "ENVIRONMENTS", (SimpleNamespace(python=python),))
    assert clients.main([]) == 2
    assert capsys.readouterr().err == "npm is not here\n"


def test_a_page_is_not_written_where_a_test_did_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    page = tmp_path / "clients.md"
    page.write_text(table.BEGIN + table.END)
    monkeypatch.setattr(table, "PAGE", page)
    cells = [table.Shown("test_llm::test_seed", "llm", "seed", "yes")]
    assert clients.write(cells, passed=set()) == 1 and "test_llm::test_seed" in capsys.readouterr().err
    assert clients.write(cells, passed={"test_llm::test_seed"}) == 0 and "| seed | yes |" in page.read_text()


def test_every_lock_names_versions() -> None:
    for lock in clients.LOCKS.glob("*.txt"):
        lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
        assert lines and all("==" in line for line in lines), lock.name
        assert not [line for line in lines if line.startswith(("torch==", "nvidia-", "triton"))], lock.name


def test_the_talker_learns_the_answers_alone() -> None:
    pytest.importorskip("torch")
    from tests.clients import talker

    tokenizer = talker._tokenizer()
    for prompt, answer in talker._lessons(tokenizer):
        assert tokenizer.decode(prompt).endswith("<|assistant|>") and tokenizer.decode(answer).endswith("<|end|>")
    _, targets = talker._batch([([5, 6, 7], [8, 9]), ([5], [8])])
    assert targets.tolist() == [[-100, -100, 8, 9], [8, -100, -100, -100]]

"""`headway bench choose` gives prompts to engines and hears from them, and counts what that takes."""

import json
from pathlib import Path

import pytest
from headway_lab.benches import choose

from headway import cli
from headway.cli import main
from headway.engine_choice import EngineChoice


def test_a_prompt_is_counted_from_its_digests_to_its_end() -> None:
    row = choose.choose(num_engines=3, prompt_tokens=256)
    assert (row.engines, row.prompt_tokens) == (3, 256)
    assert row.per_prompt_us == pytest.approx(row.digests_us + row.order_us + row.begin_end_us, abs=0.2)
    assert min(row.digests_us, row.order_us, row.begin_end_us) > 0


def test_turns_of_a_conversation_go_where_the_turn_before_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the order of engines that know nothing would be measured, which is another path."""
    first: list[int] = []
    order = EngineChoice.order
    monkeypatch.setattr(EngineChoice, "order", lambda *given: first.append(order(*given)[0]) or order(*given))
    choose.choose(num_engines=8, prompt_tokens=512)
    turns = [first[talk :: choose.CONVERSATIONS] for talk in range(choose.CONVERSATIONS)]
    assert sum(len(set(engines)) == 1 for engines in turns) > len(turns) / 2


def test_rows_are_flat_with_units_in_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "choose", "--engines", "2,4", "--prompt-tokens", "128", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("engines") for row in rows] == [2, 4, None, None]
    assert {"digests_us", "order_us", "per_prompt_us"} <= rows[0].keys()
    assert [row["message"].split()[0] for row in rows[2:]] == ["pulse", "64"]
    assert all(row["bytes"] > 0 and row["per_message_us"] >= row["choice_us"] > 0 for row in rows[2:])


def test_as_a_table_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "choose.svg"
    assert main(["bench", "choose", "--engines", "2", "--prompt-tokens", "64", "--plot", str(file)]) == 0
    assert "The choice of an engine, per prompt" in capsys.readouterr().out and file.exists()


@pytest.mark.parametrize("arguments", [["--engines", "0"], ["--engines", "x"], ["--prompt-tokens", "1"]])
def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["bench", "choose", *arguments]) == cli.BAD_INPUT
    assert arguments[0] in capsys.readouterr().err

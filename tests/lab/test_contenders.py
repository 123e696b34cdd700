"""Several systems are measured in turn, and compared round by round."""

import pytest
import typer
from headway_lab.schedulers.contenders import HEADWAY, contenders, groups, in_turn, sums, with_reserve
from headway_lab.schedulers.workloads import Preemption

from headway.bench.child_process import ChildError
from headway.bench.rounds import compared, pooled
from headway.cli import main


def rounds(log, name, values):
    for value in values:
        log.append(name)
        yield {"us": [value, value]}


def test_one_round_of_each_after_the_other():
    log = []
    ours, theirs = in_turn([rounds(log, "ours", [1, 2, 3]), rounds(log, "theirs", [4, 5, 6])])
    assert log == ["ours", "theirs"] * 3
    assert ours == [{"us": [1, 1]}, {"us": [2, 2]}, {"us": [3, 3]}]
    assert theirs == [{"us": [4, 4]}, {"us": [5, 5]}, {"us": [6, 6]}]


def test_different_numbers_of_rounds_are_a_fault():
    with pytest.raises(ValueError, match="shorter"):
        in_turn([rounds([], "ours", [1, 2]), rounds([], "theirs", [1])])


def test_a_ratio_is_told_over_all_and_for_the_rounds_where_it_is_least_and_most():
    ours, theirs = [{"us": [1.0]}, {"us": [2.0]}], [{"us": [10.0]}, {"us": [10.0]}]
    assert compared(theirs, ours, lambda samples: sum(samples["us"])) == {
        "times_headway": round(20 / 3, 2),
        "times_headway_low": 5.0,
        "times_headway_high": 10.0,
    }


def test_samples_are_pooled_and_summed_by_name():
    both = pooled([{"a": [1.0], "b": [2.0]}, {"a": [3.0], "b": [4.0]}])
    assert both == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert sums(both, "a", "b") == [3.0, 7.0]


def test_headway_comes_first_and_each_peer_once(fake_peers):
    with contenders(["vllm", "transformers", "vllm"]) as systems:
        assert systems[0] is HEADWAY
        assert [system.name for system in systems[1:]] == fake_peers == ["vllm", "transformers"]


def test_without_the_adapter_there_is_one_group(fake_peers):
    with groups(["vllm"], through_adapter=False) as ((ours, theirs),):
        assert ours is HEADWAY and theirs.name == "vllm"


def test_through_the_adapter_ours_stands_beside_the_peers_own_for_both_kinds_of_steps(fake_peers):
    with groups(["vllm"], through_adapter=True) as each:
        assert [[system.name for system in group] for group in each] == [
            ["headway under vllm", "vllm"],
            ["headway under vllm, async", "vllm, async"],
        ]
    assert fake_peers == ["vllm with headway", "vllm"]


@pytest.mark.parametrize("peers", [None, ["transformers"], ["vllm", "transformers"]])
@pytest.mark.parametrize("command", ["step", "churn", "preempt"])
def test_there_is_an_adapter_for_vllm_alone(fake_peers, capsys, command, peers):
    options = [part for peer in peers or () for part in ("--peer", peer)]
    assert main(["bench", command, "--through-adapter", *options]) == 2
    assert "needs --peer vllm, and no other peer" in capsys.readouterr().err and not fake_peers


def test_a_peer_that_fails_while_it_measures_ends_the_command_with_its_last_words(fake_peers, capsys):
    with pytest.raises(typer.Exit) as ended, contenders(["vllm"]):
        raise ChildError("vllm ended: out of memory")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "headway: vllm ended: out of memory\n"


def test_another_reserve_rule_admits_otherwise():
    small = Preemption(1, requests=24, prompt=16, output=128, concurrent=24, num_blocks=33, max_model_len=256)
    (careful,), (bold,) = (list(system.run(small)) for system in (with_reserve("blocks"), with_reserve("none")))
    assert careful["preemptions"][0] < bold["preemptions"][0]

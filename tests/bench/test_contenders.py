"""Several systems are measured in turn, and compared round by round."""

import pytest

from headway.bench.contenders import compared, in_turn, pooled, sums


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

"""Options of several values with commas between them."""

import math

import pytest
import typer

from headway.commands.lists import names, numbers, positive_numbers, whole_numbers


def test_values_come_in_their_order() -> None:
    assert whole_numbers(1, 9)("3,1,3") == (3, 1, 3)
    assert numbers(0, math.inf)("0,2.5,inf") == (0.0, 2.5, math.inf)
    assert positive_numbers()("0.1,inf") == (0.1, math.inf)
    assert names(["one", "two"])("two,one") == ("two", "one")


def test_a_default_passes_unchanged() -> None:
    assert whole_numbers(1, 9)((64, 256)) == (64, 256)


@pytest.mark.parametrize(
    ("parser", "given", "says"),
    [
        (whole_numbers(1, 9), "0", "whole numbers in [1, 9] with commas between them, got '0'"),
        (whole_numbers(1, 9), "1,10", "whole numbers in [1, 9] with commas between them, got '1,10'"),
        (whole_numbers(1, 9), "1.5", "whole numbers in [1, 9]"),
        (whole_numbers(1, 9), "1,,2", "whole numbers in [1, 9]"),
        (whole_numbers(1, 9), "", "whole numbers in [1, 9]"),
        (numbers(0.1, 9), "0", "numbers in [0.1, 9] with commas between them, got '0'"),
        (numbers(0, math.inf), "nan", "numbers in [0, inf]"),
        (positive_numbers(), "0", "numbers above 0, or inf, with commas between them, got '0'"),
        (positive_numbers(), "nan", "numbers above 0"),
        (names(["one", "two"]), "three", "of one, two, each once, with commas between them, got 'three'"),
        (names(["one", "two"]), "one,one", "each once"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(parser, given: str, says: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        parser(given)
    assert says in refused.value.message

"""Token ids are copied, checked and packed, whatever sequence they come in."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from headway.errors import RequestError
from headway.token_ids import check_token_ids, pack

LIMIT = 100
LONG = 20_000  # looked through in one piece


@pytest.mark.parametrize("length", [0, 1, 499, 500, 501, 1_003, LONG])
@pytest.mark.parametrize("kind", [list, tuple, np.int32, np.int64, np.uint16, lambda ids: array("i", ids)])
def test_every_kind_of_sequence_gives_the_same(kind, length: int) -> None:
    ids = [i % LIMIT for i in range(length)]
    given = kind(ids) if not isinstance(kind, type) or kind in (list, tuple) else np.array(ids, kind)
    tokens = pack(given, LIMIT)
    assert tokens.dtype == np.int32 and tokens.tolist() == ids and not tokens.flags.writeable


def test_what_the_caller_changes_later_is_not_seen() -> None:
    for mine in ([1, 2, 3], np.array([1, 2, 3], np.int32), np.array([1, 2, 3], np.int64)):
        tokens = pack(mine, LIMIT)
        mine[0] = 9
        assert tokens.tolist() == [1, 2, 3]


def test_what_is_packed_is_not_copied_and_a_view_of_an_array_is() -> None:
    packed = pack([1, 2, 3], LIMIT)
    assert pack(packed, LIMIT) is packed
    crossed = np.frombuffer(packed.tobytes(), np.int32)
    assert pack(crossed, LIMIT) is crossed
    mine = np.array([1, 2, 3], np.int32)
    view = mine[:]
    view.flags.writeable = False
    tokens = pack(view, LIMIT)
    mine[0] = 9
    assert tokens.tolist() == [1, 2, 3]
    with pytest.raises(RequestError, match="contains token id 3"):
        pack(packed, 3)


def test_strides_are_packed() -> None:
    assert pack(np.arange(10, dtype=np.int32)[::-2], LIMIT).tolist() == [9, 7, 5, 3, 1]


@pytest.mark.parametrize("kind", [list, np.int32, np.int64])
@pytest.mark.parametrize("wrong", [LIMIT, -1, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(("length", "place"), [(1, 0), (600, 0), (600, 499), (600, 500), (600, 599), (LONG, LONG - 1)])
def test_an_id_out_of_range_is_refused_wherever_it_stands(kind, wrong: int, length: int, place: int) -> None:
    ids = [0] * length
    ids[place] = wrong
    with pytest.raises(RequestError, match=f"contains token id {wrong}; ids are integers from 0 to 99"):
        pack(ids if kind is list else np.array(ids, kind), LIMIT)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([1, 2**31], "token id 2147483648"),
        ([1, 2**70], "the prompt"),
        ([1.5], "flat list of integers, got 1-d float64"),
        ([True, False], "flat list of integers, got 1-d bool"),
        ([[1, 2], [3, 4]], "flat list of integers, got 2-d"),
        ([[1], [2, 3]], "not a list of token ids"),
        (["a"], "flat list of integers"),
        ([None], "flat list of integers"),
        ("text", "flat list of integers"),
        (np.zeros((2, 2), np.int32), "got 2-d int32"),
    ],
)
def test_what_is_no_flat_list_of_ids_is_refused(prompt, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        pack(prompt, LIMIT)


def test_the_first_wrong_id_is_named() -> None:
    check_token_ids("stop_token_ids", (0, np.int64(99)), LIMIT)
    with pytest.raises(RequestError, match=r"stop_token_ids contains token id 100; ids are integers from 0 to 99"):
        check_token_ids("stop_token_ids", (1, 100, -1), LIMIT)

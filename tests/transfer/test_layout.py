"""Two engines fit, or the first field that does not is named with both values."""

from typing import Any

import pytest

from headway.transfer.layout import LayerSizes
from tests.transfer.rig import LAYERS, layout


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"protocol": 1}, "protocol differs: 2 here, 1 there"),
        ({"model": "b"}, "model differs: 'a model' here, 'b' there"),
        ({"dtype": "bfloat16"}, "dtype differs: 'float32' here, 'bfloat16' there"),
        ({"itemsize": 2}, "itemsize differs: 4 here, 2 there"),
        ({"block_size": 16}, "block_size differs: 4 here, 16 there"),
        ({"layers": LAYERS[:1]}, "the number of layers differs: 2 here, 1 there"),
        ({"layers": (LAYERS[0], LayerSizes(1, 4, 1, 8))}, "the KV of layer 1 differs: .*value_dim=4.*value_dim=8"),
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0 there"),
    ],
)
def test_what_differs_is_named(changed: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        layout().check(layout(**changed))


def test_the_number_of_blocks_may_differ() -> None:
    layout(64).check(layout(9))


def test_parts_lie_one_after_the_other_and_do_not_overlap() -> None:
    one = layout(1000)
    assert one.part_bytes == (4 * 4 * 6, 4 * 4 * 10, 4 * 4 * 4, 4 * 4 * 4)
    assert one.block_bytes == sum(one.part_bytes)
    ends = [offset + size * 1000 for offset, size in zip(one.part_offsets, one.part_bytes, strict=True)]
    assert all(end <= start for end, start in zip(ends, one.part_offsets[1:], strict=False))
    assert ends[-1] <= one.total_bytes and all(offset % 4096 == 0 for offset in one.part_offsets)
    assert [one.columns_for(tokens) for tokens in (1, 4, 5)] == [1, 1, 2]

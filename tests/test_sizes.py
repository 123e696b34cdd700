from __future__ import annotations

import pytest

from headway.sizes import readable


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (1010 * 1024, "1010 KiB"),
        (3_680_000, "3.51 MiB"),
        (70 * 2**30, "70 GiB"),
        (2**52, "4096 TiB"),
    ],
)
def test_a_size_has_the_unit_in_which_it_is_short(num_bytes: int, text: str) -> None:
    assert readable(num_bytes) == text

"""Names that a misspelt name stands for, most likely."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LIKENESS = 0.75  # names less like the given name would only mislead: tensor_parallel_size is no encoder_cache_size


def near(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are most like this name, at most two, the nearest first."""
    return difflib.get_close_matches(name, sorted(known), n=2, cutoff=_LIKENESS)

"""How many examples a test tries, as a share of what the profile of Hypothesis says (see tests/conftest.py)."""

from __future__ import annotations

from hypothesis import settings


def examples(share: float = 1.0) -> settings:
    """Settings for a test that needs more examples than others, or fewer."""
    return settings(max_examples=max(1, round(share * settings().max_examples)))

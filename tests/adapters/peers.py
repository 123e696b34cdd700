"""How tests ask for the environment of a peer, and how much of them runs.

In `make test` they run where the environment exists already, and then a short part of them. `make adapters` makes the
environments, sets HEADWAY_ADAPTERS, and runs everything.
"""

import os

import pytest
from headway_lab.peers.environment import Environment

WHOLE = bool(os.environ.get("HEADWAY_ADAPTERS"))


def needs(environment: Environment) -> pytest.MarkDecorator:
    """Skips where the environment does not exist."""
    reason = f"{environment.title} is not in {environment.folder}: `make adapters` makes it"
    return pytest.mark.skipif(not environment.is_ready(), reason=reason)


needs_whole = pytest.mark.skipif(not WHOLE, reason="takes minutes: `make adapters` runs it")

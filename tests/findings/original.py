"""The managers as users of the original know them: what was found in the original is tested by the original's names."""

from __future__ import annotations

from functools import partial

from headway.adapters import fastdeploy
from tests.engine import running as engines
from tests.managers import driving

make = partial(driving.make, managers=fastdeploy.MANAGERS)
running = partial(engines.running, make=make)

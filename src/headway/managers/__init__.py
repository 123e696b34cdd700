"""Resource managers: how callers on any thread reach the one core.

Two axes. Policy (static or dynamic allocation) belongs to the core; access (lock or mailbox) belongs here. The
managers carry the version names that their users know:

    StaticManager     v0   static allocation    one lock
    LockedManager     v1   dynamic allocation   one lock
    LockFreeManager   v2   dynamic allocation   mailbox, no lock between callers and the step (the default)

This folder owns the door (validation, ids, bounded intake), the mailbox and the locks of scheduling. It starts no
thread and does no I/O.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from headway.config import SchedulerName
from headway.managers.door import Door
from headway.managers.lock_free import LockFreeManager
from headway.managers.locked import LockedManager
from headway.managers.mailbox import Mailbox
from headway.managers.manager import Manager
from headway.managers.static import StaticManager

V1_SWITCH = "ENABLE_V1_KVCACHE_SCHEDULER"
V2_SWITCH = "ENABLE_V2_KVCACHE_SCHEDULER"

MANAGERS: dict[SchedulerName, type[Manager]] = {
    "v0": StaticManager,
    "v1": LockedManager,
    "v2": LockFreeManager,
}


def choose_scheduler(name: SchedulerName | None = None, environ: Mapping[str, str] = os.environ) -> SchedulerName:
    """The one place where the scheduler is chosen: "v0", "v1" or "v2".

    A name wins. Else the environment: ENABLE_V2_KVCACHE_SCHEDULER=1 gives v2; else, if either switch is set,
    ENABLE_V1_KVCACHE_SCHEDULER=0 gives v0 and any other value v1. With neither a name nor a switch: v2.
    Raises ValueError for an unknown name.
    """
    if name is not None:
        if name not in MANAGERS:
            raise ValueError(f"scheduler must be one of {', '.join(MANAGERS)}, got {name!r}")
        return name
    v1, v2 = environ.get(V1_SWITCH), environ.get(V2_SWITCH)
    if v2 == "1" or (v1 is None and v2 is None):
        return "v2"
    return "v0" if v1 == "0" else "v1"


__all__ = [
    "MANAGERS",
    "Door",
    "LockFreeManager",
    "LockedManager",
    "Mailbox",
    "Manager",
    "StaticManager",
    "choose_scheduler",
]

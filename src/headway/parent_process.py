"""The end of the process that started this one, as Linux tells it."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def at_end_of_parent(number: signal.Signals) -> None:
    """This process gets the signal `number` when the thread that started it ends. Linux alone.

    A process that is stopped does not see the end of a pipe: SIGKILL ends it all the same, and SIGCONT lets it see the
    end and remove what is its own. SIGCONT does no harm either if the thread ends and its process lives. An end before
    this call brings no signal: the pipe is still needed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)

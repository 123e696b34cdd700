"""The end of a process: daemon threads may be anywhere then, also in native code."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from typing import NoReturn


def exit_process(code: int) -> NoReturn:
    """End the process with this exit code, as `sys.exit` does on the main thread, and never by SIGABRT.

    `sys.exit` takes the interpreter apart beside daemon threads. Python ends a daemon thread at its next step back into
    Python: through the C++ of torch, which calls abort(); or with the lock of standard output, whose flush calls
    abort(). So the process ends before that: after its other threads, its exit handlers, and the flush of what was
    printed. To take apart what torch and transformers have imported would take a second, too.

    Ctrl-C is ignored from here on: it has nothing to add.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter: waits for threads and their pools
    atexit._run_exitfuncs()
    if _flushed():
        os._exit(code)
    sys.exit(code)


def _flushed() -> bool:
    """False: something cannot be written. Python tries again, says so, and has an exit code for it."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        return False
    return True

"""`headway` and `python -m headway`: the command line, whose modules may be interrupted while they load."""

from __future__ import annotations

import signal
import sys

_INTERRUPTED = 130  # exit code


def main() -> int:
    """Run the command line of the process. Returns the exit code. Ctrl-C ends it without a traceback at any time."""
    try:
        from headway.cli import main as run

        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process ends now: a second Ctrl-C has nothing to add
    return code


if __name__ == "__main__":
    sys.exit(main())

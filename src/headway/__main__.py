"""`headway` and `python -m headway`: the command line, whose modules may be interrupted while they load."""

from __future__ import annotations

import _thread
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from headway.exit import exit_process

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_INTERRUPTED = 130  # exit code
_SOON = 0.05  # seconds


def main() -> NoReturn:
    """Run the command line, and end the process. Ctrl-C ends it without a traceback at any time."""
    sys.unraisablehook = _raise_where_it_can_be
    try:
        from headway.cli import main as run

        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    exit_process(code)


def _raise_where_it_can_be(lost: UnraisableHookArgs) -> None:
    """A Ctrl-C that came while an object was finalised would be printed and forgotten: it comes again, once this
    function is left."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(_SOON, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    main()

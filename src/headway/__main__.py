"""`headway` and `python -m headway`: the command line, whose modules may be interrupted while they load."""

from __future__ import annotations

from typing import NoReturn

from headway.exit import exit_process

_INTERRUPTED = 130  # exit code


def main() -> NoReturn:
    """Run the command line, and end the process. Ctrl-C ends it without a traceback at any time."""
    try:
        from headway.cli import main as run

        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    exit_process(code)


if __name__ == "__main__":
    main()

"""Starts a server with the embedded model, and lets schemathesis ask it whatever its documentation allows, and more.

    python tools/fuzz.py [--max-examples 50] [more arguments of `schemathesis run`]

No answer may be a 5xx, have a status or a type of content that the documentation does not name, or break its schema.
No request that is valid by the documentation may be refused, except for the reasons in `tests/fuzz/valid_bodies.py`.

There are two servers, one after the other. The first refuses the routes for its operator, as most servers do. The
second takes them, and only these routes are asked, because /pause stops all others; afterwards it must serve again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

BIN = Path(sys.executable).parent
VALID_BODIES = Path(__file__).parents[1] / "tests" / "fuzz" / "valid_bodies.py"
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "valid_requests_are_accepted",  # of VALID_BODIES
]
PHASES = ["--phases", "examples,coverage,fuzzing"]
EXAMPLES = ["--max-examples", "25"]
TIMEOUT = ["--request-timeout", "60"]  # seconds
ADMIN = ["--include-path-regex", "^/(pause|resume|is_paused|reset_prefix_cache|debug/)"]
SHORT = ["--max-model-len", "128"]  # max_tokens null fills the context


@contextmanager
def server(*options: str) -> Iterator[str]:
    """The URL of a server with these options of `headway serve`. Raises RuntimeError if it does not start."""
    serve = [sys.executable, "-c", "import sys; from headway.cli import main; sys.exit(main(sys.argv[1:]))", "serve"]
    process = subprocess.Popen([*serve, "--port", "0", *SHORT, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next((line.split()[-1] for line in process.stdout if line.startswith("Headway serving")), None)
        if url is None:
            raise RuntimeError(f"the server has ended with status {process.wait()} before it served")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, arguments: list[str]) -> int:
    """Returns the exit status of schemathesis. arguments: for `schemathesis run`."""
    checks = ["--checks", ",".join(CHECKS)]
    options = [*checks, *PHASES, *EXAMPLES, *TIMEOUT, *arguments]
    return subprocess.call(
        [str(BIN / "schemathesis"), "run", f"{url}/openapi.json", *options],
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(VALID_BODIES)},
    )


def main(arguments: list[str]) -> int:
    """Returns 0 if all is well. arguments: for both runs of `schemathesis run`."""
    with server() as url:
        failed = ask(url, arguments)
    with server("--enable-admin-api") as url:
        failed |= ask(url, [*ADMIN, *arguments])
        httpx.post(f"{url}/resume").raise_for_status()
        httpx.post(f"{url}/v1/completions", json={"prompt": "1+1=", "max_tokens": 4}, timeout=60).raise_for_status()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

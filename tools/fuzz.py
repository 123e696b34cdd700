"""Starts a server with the embedded model, and lets schemathesis ask it whatever its documentation allows, and more.

    python tools/fuzz.py [--max-examples 50] [more arguments of `schemathesis run`]

No answer may be a 5xx, have a status or a type of content that the documentation does not name, or break its schema.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EXAMPLES = ["--max-examples", "25"]
TIMEOUT = ["--request-timeout", "60"]  # seconds


def main(arguments: list[str]) -> int:
    """Returns the exit status of schemathesis. arguments: for `schemathesis run`."""
    serve = [sys.executable, "-c", "import sys; from headway.cli import main; sys.exit(main(sys.argv[1:]))", "serve"]
    options = ["--port", "0", "--max-model-len", "256"]  # short contexts: max_tokens null fills them
    server = subprocess.Popen([*serve, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next((line.split()[-1] for line in server.stdout if line.startswith("Headway serving")), None)
        if url is None:
            return server.wait()
        options = [
            f"{url}/openapi.json",
            "--checks",
            CHECKS,
            "--phases",
            "examples,coverage,fuzzing",
            *EXAMPLES,
            *TIMEOUT,
        ]
        return subprocess.call([str(BIN / "schemathesis"), "run", *options, *arguments])
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

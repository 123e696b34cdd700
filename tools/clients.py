"""Runs the official clients and libraries against Headway, each by its own documented calls, and prints which features
each of them can use.

    make clients [ARGS="-k openai"]         more arguments go to pytest
    make clients ARGS=--write               and writes the table into docs/clients.md

The clients lie in environments of their own in the user's cache folder, each made once, in minutes. The servers run
from the environment that this runs in. Exit status 1 if a test fails; 2 if an environment cannot be made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for `from tests.clients`, however this is started

from headway_lab.peers.environment import Environment, Installer, PeerMissing  # noqa: E402
from headway_lab.peers.vllm_engine import VLLM_ENGINE  # noqa: E402

from headway.bench.server_process import ServerProcess  # noqa: E402
from tests.clients import table, talker  # noqa: E402

FOLDER = ROOT / "tests" / "clients"
LOCKS = FOLDER / "environments"
PACKAGES = FOLDER / "javascript"
JAVASCRIPT = ("package.json", "package-lock.json")
TORCH = "2.13.0"  # installed first and alone: then no package brings a build for CUDA
KEY = "a-key-of-the-tests"
SMALL = ("--num-blocks", "800", "--api-key", KEY)
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def _environment(
    lock: str,
    cost: str,
    title: str,
    more: Callable[[Installer], None] | None = None,
    packages: tuple[str, ...] = (),
) -> Environment:
    requirements = LOCKS / f"{lock}.txt"

    def fill(installer: Installer) -> None:
        if more is not None:
            more(installer)
        installer.pip("install", "--no-deps", "-r", requirements)

    parts = (TORCH, requirements.read_text(), *(PACKAGES.joinpath(name).read_text() for name in packages))
    return Environment(name=lock, title=title, cost=cost, parts=parts, fill=fill, shelf="clients")


def _javascript(installer: Installer) -> None:
    folder = installer.folder / "javascript"
    folder.mkdir()
    for name in JAVASCRIPT:
        (folder / name).write_text((PACKAGES / name).read_text())
    installer.run("npm", "ci", "--no-audit", "--no-fund", "--prefix", folder)


def _torch(installer: Installer) -> None:
    installer.pip("install", f"torch=={TORCH}")


NEWEST = _environment(
    "newest", "minutes, 700 MB", "clients that take the newest openai, and JavaScript's", _javascript, JAVASCRIPT
)
OLDER = _environment("older", "minutes, 400 MB", "clients that ask for an older openai")
GUIDELLM = _environment("guidellm", "minutes, 1.5 GB", "guidellm", _torch)
LM_EVAL = _environment("lm-eval", "minutes, 1.8 GB", "lm-eval", _torch)


@dataclass(frozen=True)
class Group:
    """Clients that run in one environment. modules: of tests/clients/calls, by the names of the clients."""

    environment: Environment
    modules: tuple[str, ...]


_OPENAI = ("openai", "openai_js", "anthropic", "litellm", "langchain", "pydantic_ai", "openai_agents", "llm", "ai_sdk")
GROUPS = (
    Group(NEWEST, _OPENAI),
    Group(OLDER, ("llama_index", "instructor")),
    Group(GUIDELLM, ("guidellm", "vllm_bench", "lm_eval")),  # the last two run commands of other environments
)
ENVIRONMENTS = (*(group.environment for group in GROUPS), LM_EVAL)


def run(group: Group, arguments: list[str], variables: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """Run the tests of a group by pytest in its environment. Returns the tests that passed and the tests that failed,
    as `module::function`. Raises RuntimeError if pytest ended without a report."""
    tests = [f"tests/clients/calls/test_{module}.py" for module in group.modules]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["--confcutdir=tests/clients", "-p", "no:cacheprovider", "-q", "-rs", f"--junitxml={report}"]
        command = [str(group.environment.python()), "-m", "pytest", *options, *arguments, *tests]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **variables})
        if not report.exists():
            raise RuntimeError(f"the tests in {group.environment.folder} ended without a report")
        return outcomes(report.read_text())


def outcomes(report: str) -> tuple[set[str], set[str]]:
    """The tests that passed and the tests that failed, of a report in JUnit's form. A test with a failing parameter has
    failed; a test that was skipped has done neither."""
    passed, failed = set(), set()
    for case in ElementTree.fromstring(report).iter("testcase"):
        module = case.get("classname", "").rpartition(".")[2]
        test = f"{module}::{case.get('name', '').partition('[')[0]}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(test)
        elif case.find("skipped") is None:
            passed.add(test)
    return passed - failed, failed


def servers(checkpoint: str) -> dict[str, tuple[str, ...]]:
    """The arguments of `headway serve`, by the names that tests have for the servers."""
    talks = (checkpoint, "--served-model-name", "talker", *SMALL, *TOOLS)
    return {"sums": (*SMALL, *TOOLS), "talker": talks, "thinker": (*talks, "--reasoning-parser", "qwen3")}


def serve(stack: ExitStack) -> dict[str, str]:
    """Start the servers that the tests talk with. Returns their addresses by name."""
    started = servers(str(talker.made(NEWEST.folder.parent)))
    return {name: stack.enter_context(ServerProcess(words)).base_url for name, words in started.items()}


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    writing = "--write" in arguments
    arguments = [argument for argument in arguments if argument != "--write"]
    try:
        for environment in ENVIRONMENTS:
            environment.python()
    except PeerMissing as error:
        print(error, file=sys.stderr)
        return 2
    passed: set[str] = set()
    failed: set[str] = set()
    with ExitStack() as stack:
        variables = {
            "HEADWAY_CLIENTS": json.dumps(serve(stack)),
            "HEADWAY_CLIENTS_KEY": KEY,
            "HEADWAY_CLIENTS_NODE": str(NEWEST.folder / "javascript"),
            "HEADWAY_CLIENTS_PYTHON": sys.executable,
            "HEADWAY_CLIENTS_LM_EVAL": str(LM_EVAL.python()),
            "HEADWAY_CLIENTS_VLLM": str(VLLM_ENGINE.folder / "bin" / "vllm") if VLLM_ENGINE.is_ready() else "",
        }
        for group in GROUPS:
            good, bad = run(group, arguments, variables)
            passed |= good
            failed |= bad
    cells = [cell for cell in table.shown() if cell.test in passed | failed]
    print(table.table(cells, frozenset(failed)))
    if writing:
        return write(table.shown(), passed)
    return int(bool(failed) or not passed)


def write(cells: list[table.Shown], passed: set[str]) -> int:
    if missing := sorted({cell.test for cell in cells} - passed):
        print(f"docs/clients.md is left as it is: these did not pass: {', '.join(missing)}", file=sys.stderr)
        return 1
    page = table.PAGE.read_text(encoding="utf-8")
    table.PAGE.write_text(table.rewritten(page, table.table(cells)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

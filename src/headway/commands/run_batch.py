"""`headway run-batch`: the requests in a file, answered into another, in OpenAI's form of batches."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.commands.options import (
    ChatTemplateOption,
    ReasoningParserOption,
    ToolCallParserOption,
    takes_model_and_engine,
)
from headway.config import EngineConfig
from headway.logs import log_to_standard_error

if TYPE_CHECKING:
    from headway.server.batch_files import Progress

_EVERY_S = 5.0  # seconds between two lines of progress
_INTERRUPTED = 130  # exit status, as of a command that Ctrl-C ends

EXAMPLES = (
    "headway run-batch -i requests.jsonl -o answers.jsonl",
    "headway run-batch Qwen/Qwen3-0.6B -i requests.jsonl -o answers.jsonl",
    "headway run-batch -i in.jsonl -o out.jsonl --concurrency 64",
)


@takes_model_and_engine
def command(
    config: EngineConfig,
    input_file: Annotated[
        str, typer.Option("--input-file", "-i", metavar="FILE", help="Requests, one JSON object a line.")
    ],
    output_file: Annotated[
        str, typer.Option("--output-file", "-o", metavar="FILE", help="Where the answers go, line by line.")
    ],
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests that are answered at once.", show_default="twice --max-num-seqs"),
    ] = None,
    chat_template: ChatTemplateOption = None,
    tool_call_parser: ToolCallParserOption = None,
    reasoning_parser: ReasoningParserOption = None,
) -> None:
    """Answer a file of requests (OpenAI's batch form) into another file.

    The output has its name when it is complete; until then its name ends in .partial.
    """
    for file in (input_file, output_file):
        if file.startswith(("http://", "https://")):
            raise ValueError(f"run-batch reads and writes local files, got {file!r}: fetch or send it yourself")
    source, target = Path(input_file), Path(output_file)
    with source.open("rb"):  # before the model is loaded
        pass
    if not target.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {str(target.parent)!r} for the answers")
    service = {
        "chat_template": chat_template,
        "tool_call_parser": tool_call_parser,
        "reasoning_parser": reasoning_parser,
    }
    raise typer.Exit(asyncio.run(_run(config, source, target, concurrency, service)))


async def _run(
    config: EngineConfig, source: Path, target: Path, concurrency: int | None, service: dict[str, Any]
) -> int:
    """service: arguments of `Service`. Returns the exit status."""
    from headway.client.engine_client import EngineClient, EngineStartError
    from headway.server.batch_files import Progress, partial_file, run_batch
    from headway.server.routes.api import create_app
    from headway.server.serve import stop_signals

    log_to_standard_error()
    progress = Progress()

    async def work() -> None:
        try:
            client = await EngineClient.start(config)
        except EngineStartError as error:
            raise ValueError(str(error)) from None
        try:
            app = create_app(client, client.files.name, **service)
            at_once = concurrency or 2 * client.config.max_num_seqs
            await run_batch(app, source, target, concurrency=at_once, progress=progress)
        finally:
            await client.shutdown()

    with stop_signals() as stop:
        telling = asyncio.create_task(_tell(progress))
        working: asyncio.Task[Any] = asyncio.create_task(work())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        telling.cancel()
        stopped.cancel()
        if working.done():
            working.result()
            _say(f"{_counts(progress)}: {target}")
            return 0
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        _say(f"interrupted after {_counts(progress)}, which are in {partial_file(target)}")
        return _INTERRUPTED


async def _tell(progress: Progress) -> None:
    while True:
        await asyncio.sleep(_EVERY_S)
        if progress.num_lines:
            _say(f"{_counts(progress)}, {progress.share:.0%} of the requests read")


def _counts(progress: Progress) -> str:
    return f"{progress.num_lines} lines, {progress.num_errors} with errors"


def _say(text: str) -> None:
    print(f"headway run-batch: {text}", file=sys.stderr, flush=True)

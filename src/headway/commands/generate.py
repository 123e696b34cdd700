"""`headway generate`: prompts from the command line, a file or standard input; answers as text or JSON lines."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.commands.options import load_llm, takes_engine, takes_sampling
from headway.config import EngineConfig
from headway.request import FinishReason
from headway.sampling import SamplingParams

if TYPE_CHECKING:
    from headway.outputs import RequestOutput

EXAMPLES = (
    "headway generate '12+34='",
    "headway generate --model ./my-model --max-tokens 64 'Once upon a time'",
    "headway generate --file prompts.txt --json > answers.jsonl",
)
_LIKE_A_MODEL = re.compile(  # Qwen/Qwen3-0.6B, ./tiny or tiny-random:llama, and not 1/2
    r"tiny-random:\w+|[A-Za-z][\w.-]*/[\w.-]*[A-Za-z][\w.-]*|(\.{0,2}|~)/[^\s=?]+"
)


@takes_engine
@takes_sampling
def command(
    config: EngineConfig,
    given: dict[str, Any],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Prompts to answer.", show_default="standard input")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Read prompts from a file, one per line; - is standard input."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of answers to each prompt.", show_default=True)] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per answer, each on its own line.")
    ] = False,
) -> None:
    """Answer prompts.

    The words of the command line are prompts; the model is named by --model.
    """
    _refuse_models(prompts or (), model=config.model)
    prompts = [*(prompts or ()), *_prompts_from(file, needed=not prompts)]
    given["n"] = SamplingParams(n=n).n
    with load_llm(config) as llm:
        sampling = replace(llm.default_sampling_params(), **given)
        outputs = llm.generate(prompts, sampling)
    for number, output in enumerate(outputs):
        if as_json:
            _print_json(number, output)
        else:
            _print_answers(output, with_prompt=len(outputs) > 1)
    if any(answer.finish_reason is FinishReason.ERROR for output in outputs for answer in output.outputs):
        raise typer.Exit(1)


def _refuse_models(prompts: Sequence[str], model: str | None) -> None:
    """Raise ValueError for a model that stands where prompts do."""
    for number, prompt in enumerate(prompts):
        rest = " ".join(map(shlex.quote, [*prompts[:number], *prompts[number + 1 :]])) or "PROMPT"
        comes_first = number == 0 and len(prompts) > 1 and model is None
        if (comes_first and _LIKE_A_MODEL.fullmatch(prompt)) or _is_model_folder(prompt):
            raise ValueError(
                f"{prompt!r} names a model, and the words of this command are prompts: "
                f"headway generate --model {shlex.quote(prompt)} {rest}"
            )


def _is_model_folder(text: str) -> bool:
    try:
        return (Path(text).expanduser() / "config.json").is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, a zero byte, no such user
        return False


def _prompts_from(file: str | None, *, needed: bool) -> list[str]:
    """The lines of a file, without empty lines. Standard input is read if there is no other prompt."""
    if file is None and not needed:
        return []
    if file is None and sys.stdin.isatty():
        raise ValueError("there is no prompt: write one after the command, or name a --file")
    try:
        text = sys.stdin.read() if file in (None, "-") else Path(str(file)).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompts in {file or 'standard input'} are not UTF-8: {error}") from None
    prompts = [line for line in text.splitlines() if line.strip()]
    if needed and not prompts:
        raise ValueError(f"there is no prompt in {file or 'standard input'}")
    return prompts


def _print_answers(output: RequestOutput, *, with_prompt: bool) -> None:
    if with_prompt:
        typer.secho(output.prompt, bold=True)
    for answer in output.outputs:
        print(answer.text)
        if answer.error is not None:
            print(f"headway: {answer.error}", file=sys.stderr)


def _print_json(number: int, output: RequestOutput) -> None:
    times = output.metrics
    for answer in output.outputs:
        row = {
            "prompt_index": number,
            "answer_index": answer.index,
            "prompt": output.prompt,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            "error": answer.error,
            "prompt_tokens": len(output.prompt_token_ids),
            "cached_tokens": output.num_cached_tokens,
            "output_tokens": len(answer.token_ids),
            "first_token_ms": _milliseconds(times.arrival_time, times.first_token_time),
            "total_ms": _milliseconds(times.arrival_time, times.finished_time),
        }
        print(json.dumps(row, ensure_ascii=False))


def _milliseconds(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1e3, 3)

"""`headway chat`: a conversation, typed at the terminal or piped in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.commands.options import ChatTemplateOption, load_llm, takes_engine, takes_sampling
from headway.config import EngineConfig

if TYPE_CHECKING:
    from headway.llm import LLM
    from headway.sampling import SamplingParams


@takes_engine
@takes_sampling
def command(
    config: EngineConfig,
    given: dict[str, Any],
    system: Annotated[
        str | None, typer.Option(help="System message: text that the model reads first.", show_default=False)
    ] = None,
    chat_template: ChatTemplateOption = None,
) -> None:
    """Talk with a model.

    /new starts a new conversation. /exit, or the end of the input, leaves.
    Ctrl-C ends an answer. Lines piped in are answered in order, as one conversation.
    """
    opening: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    with load_llm(config, chat_template) as llm:
        sampling = replace(llm.default_sampling_params(), **given)
        llm.render_chat([{"role": "user", "content": "Hello"}])  # without a chat template, say so now
        messages = list(opening)
        for line in _lines_said(llm.files.name):
            if line == "/exit":
                break
            if line == "/new":
                messages = list(opening)
                continue
            question = {"role": "user", "content": line}
            answer = _speak(llm, [*messages, question], sampling)
            if answer is not None:
                messages += [question, {"role": "assistant", "content": answer}]


def _lines_said(model: str) -> Iterator[str]:
    """The lines that the user types or pipes in, without blank lines."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives input() a history and the arrow keys)

        typer.secho(f"{model}: /new starts over, /exit leaves", dim=True)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _speak(llm: LLM, messages: list[dict[str, str]], sampling: SamplingParams) -> str | None:
    """Print the answer as it arrives, and return it; None if it was cut short at a terminal.

    Without a terminal, an answer that is cut short ends the command.
    """
    at_terminal = sys.stdin.isatty()
    answer = ""
    try:
        with closing(llm.stream_chat(messages, sampling)) as deltas:
            for delta in deltas:
                answer += delta.text
                print(delta.text, end="", flush=True)
                if delta.error is not None:
                    print(f"\nheadway: {delta.error}", file=sys.stderr)
                    if not at_terminal:
                        raise typer.Exit(1)
                    return None
    except (KeyboardInterrupt, ValueError) as error:
        if not at_terminal:
            raise
        print(f"\nheadway: {error}" if str(error) else "", file=sys.stderr)
        return None
    print(flush=True)
    return answer

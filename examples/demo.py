"""Serve the embedded model, ask it a few dozen questions at once, and check every answer.

    python examples/demo.py

Starts `headway serve` on a free port, asks with the official OpenAI client (pip install 'headway[examples]'), and shows
answers as they stream in. Then it shows the outcome: right and wrong answers, prefix-cache hits, time to first token,
tokens per second. The client of one request leaves half way, and the server must notice. Exit status 0: everything went
well.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headway import default_model
from headway.bench.server_process import ServerError, ServerProcess, exit_on_sigterm

try:
    import openai
except ModuleNotFoundError:
    sys.exit("demo: the official OpenAI client is not installed: pip install 'headway[examples]'")

NEEDED = 0.95  # share of right answers; the rest depends on the model's training, not on serving
MAX_TOKENS = 128
ABANDON_AFTER = 8  # pieces of the answer
GONE_WITHIN_S = 60.0  # far more than a busy machine takes
# One of our samples on the page of metrics: name without prefix, and value. Histograms have more labels.
SAMPLE = re.compile(r'^headway:(\w+)\{engine="0",model_name="[^"]*"\} (\S+)$', re.MULTILINE)
PAIR = re.compile(r"\b([a-zA-Z])(\d)\b")


@dataclass
class Exchange:
    """A question, and the answer so far. Times in seconds from sending."""

    task: str
    prompt: str
    answer: str
    is_chat: bool = False
    text: str = ""
    num_tokens: int = 0
    first_s: float | None = None
    is_done: bool = False
    error: str | None = None

    @property
    def is_right(self) -> bool:
        return self.is_done and self.text.strip() == self.answer

    async def ask(self, client: openai.AsyncOpenAI, model: str) -> None:
        """Send the question and follow the answer. A failure is stored in `error`."""
        common = {
            "model": model,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent = time.perf_counter()
        try:
            if self.is_chat:
                messages = [{"role": "user", "content": self.prompt}]
                stream = await client.chat.completions.create(messages=messages, **common)
            else:
                stream = await client.completions.create(prompt=self.prompt, **common)
            async for chunk in stream:
                for choice in chunk.choices:
                    piece = choice.delta.content if self.is_chat else choice.text
                    if piece and self.first_s is None:
                        self.first_s = time.perf_counter() - sent
                    self.text += piece or ""
                if chunk.usage is not None:
                    self.num_tokens = chunk.usage.completion_tokens
            self.is_done = True
        except openai.OpenAIError as error:
            self.error = f"{type(error).__name__}: {error}"


@dataclass
class Abandoned:
    """A long request whose client leaves in the middle of the stream."""

    max_tokens: int
    pieces: int = 0
    error: str | None = None

    async def ask(self, client: openai.AsyncOpenAI, model: str) -> None:
        try:
            stream = await client.completions.create(
                model=model,
                prompt="copy abcdefgh=",
                temperature=0,
                max_tokens=self.max_tokens,
                stream=True,
                extra_body={"ignore_eos": True, "skip_special_tokens": False},  # so that every token shows
            )
            async for _ in stream:
                self.pieces += 1
                if self.pieces == ABANDON_AFTER:
                    break
            await stream.close()
        except openai.OpenAIError as error:
            self.error = f"{type(error).__name__}: {error}"


def short_and_long(per_task: int, rng: random.Random) -> list[Exchange]:
    """Held-out problems, the same number of each task, every other one as a chat."""
    by_task: dict[str, list[default_model.Problem]] = {}
    for problem in default_model.held_out():
        by_task.setdefault(problem.task, []).append(problem)
    chosen = [problem for problems in by_task.values() for problem in rng.sample(problems, per_task)]
    return [Exchange(p.task, p.prompt, p.answer, is_chat=i % 2 == 1) for i, p in enumerate(chosen)]


def shared_prefixes(lists: int, questions: int, rng: random.Random) -> list[list[Exchange]]:
    """Several questions about each of a few long lists: prompts that differ only at their end."""
    recalls = [problem for problem in default_model.held_out() if problem.task == "recall"]
    longest = sorted(recalls, key=lambda problem: len(problem.prompt))[-lists:]
    families = []
    for problem in longest:
        listing = problem.prompt.rpartition("?")[0]
        pairs = rng.sample(PAIR.findall(listing), questions)
        families.append([Exchange("recall, shared list", f"{listing}? {key}", key + value) for key, value in pairs])
    return families


@dataclass
class Screen:
    """The screen while answers stream in."""

    exchanges: Sequence[Exchange]
    watched: Sequence[Exchange]

    def __rich__(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=True)
        table.add_column(min_width=19, style="dim", no_wrap=True)
        table.add_column(min_width=28, no_wrap=True, justify="right")
        table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
        for one in self.watched:
            question = one.prompt if len(one.prompt) <= 28 else "…" + one.prompt[-27:]
            mark = "" if not one.is_done else " ✓" if one.is_right else " ✗"
            style = "cyan" if not one.is_done else "green" if one.is_right else "red"
            table.add_row(one.task, Text(question), Text(one.text + mark, style=style))
        done = sum(one.is_done or one.error is not None for one in self.exchanges)
        return Group(table, Text(f"{done} of {len(self.exchanges)} answers complete", style="dim"))


def watched(exchanges: Sequence[Exchange], per_task: int) -> list[Exchange]:
    """The first few of each task."""
    by_task: dict[str, list[Exchange]] = {}
    for one in exchanges:
        by_task.setdefault(one.task, []).append(one)
    return [one for task in sorted(by_task) for one in by_task[task][:per_task]]


async def ask_all(url: str, model: str, arguments: argparse.Namespace, console: Console) -> bool:
    """Ask all questions. Returns whether all went well."""
    rng = random.Random(arguments.seed)
    families = shared_prefixes(lists=4, questions=4, rng=rng)
    # The first question about each list goes ahead, so that the others find the list in the prefix cache.
    ahead, others = [family[0] for family in families], [one for family in families for one in family[1:]]
    together = [*short_and_long(arguments.per_task, rng), *others]
    rng.shuffle(together)
    exchanges = [*ahead, *together]

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        card = (await client.models.retrieve(model)).model_dump()
        abandoned = Abandoned(max_tokens=card["max_model_len"] - 64)
        with Live(Screen(exchanges, watched(together, 2)), console=console, refresh_per_second=15):
            start = time.perf_counter()
            await asyncio.gather(*(one.ask(client, model) for one in ahead))
            await asyncio.gather(abandoned.ask(client, model), *(one.ask(client, model) for one in together))
            seconds = time.perf_counter() - start
    return report(exchanges, abandoned, await metrics_at_rest(url), seconds, console)


async def metrics_at_rest(url: str) -> dict[str, float]:
    """The server's metrics once no request runs or waits, or after GONE_WITHIN_S."""
    deadline = time.monotonic() + GONE_WITHIN_S
    async with httpx.AsyncClient(base_url=url) as client:
        while True:
            page = (await client.get("/metrics")).raise_for_status().text
            numbers = {name: float(value) for name, value in SAMPLE.findall(page)}
            if not numbers["num_requests_running"] + numbers["num_requests_waiting"] or time.monotonic() > deadline:
                return numbers
            await asyncio.sleep(0.05)


def report(
    exchanges: Sequence[Exchange],
    abandoned: Abandoned,
    numbers: dict[str, float],
    seconds: float,
    console: Console,
) -> bool:
    """Print the outcome. Returns whether all went well."""
    console.print()
    table = Table("task", "right", "wrong", "failed", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for task in sorted({one.task for one in exchanges}):
        asked = [one for one in exchanges if one.task == task]
        right = sum(one.is_right for one in asked)
        failed = sum(one.error is not None for one in asked)
        table.add_row(task, str(right), str(len(asked) - right - failed), str(failed))
    right = sum(one.is_right for one in exchanges)
    failed = [one.error for one in exchanges if one.error is not None]
    share = right / len(exchanges)
    console.print(table)

    tokens = sum(one.num_tokens for one in exchanges)
    first = sorted(one.first_s * 1000 for one in exchanges if one.first_s is not None)
    hits, queries = numbers["prefix_cache_hits_total"], numbers["prefix_cache_queries_total"]
    console.print(f"\n{right} of {len(exchanges)} right ({share:.0%}), {len(failed)} failed, in {seconds:.1f} s")
    console.print(f"output: {tokens} tokens, {tokens / seconds:.0f} tokens/s")
    if first:
        console.print(f"time to first token: median {statistics.median(first):.0f} ms, most {first[-1]:.0f} ms")
    console.print(f"prefix cache: {hits:.0f} of {queries:.0f} prompt tokens found ({hits / max(queries, 1):.0%})")

    # The server's tokens beyond those of complete answers belong to the abandoned request.
    at_rest = not numbers["num_requests_running"] + numbers["num_requests_waiting"]
    spent = numbers["generation_tokens_total"] - tokens
    is_gone = abandoned.error is None and at_rest and spent < abandoned.max_tokens
    console.print(
        f"abandoned request: stopped after {spent:.0f} of {abandoned.max_tokens} tokens"
        if is_gone
        else f"abandoned request: still running, or not stopped early ({abandoned.error or 'no error'})"
    )
    for error in sorted(set(failed)):
        console.print(f"failed: {error}", style="red", markup=False)
    return share >= NEEDED and not failed and is_gone


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the embedded model and check what it answers.")
    parser.add_argument("--per-task", type=int, default=6, help="held-out problems of each task (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="another seed asks other questions (default: 0)")
    parser.add_argument("serve", nargs="*", metavar="SERVE_ARG", help="after --: arguments for headway serve")
    arguments = parser.parse_args()
    console = Console()
    exit_on_sigterm()
    try:
        with console.status("Starting headway serve ...") as status, ServerProcess(arguments.serve) as server:
            status.stop()
            console.print(f"Serving {server.model} at {server.base_url}\n", highlight=False)
            went_well = asyncio.run(ask_all(server.base_url, server.model, arguments, console))
    except ServerError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("\n[bold green]All is well.[/]" if went_well else "\n[bold red]Something went wrong.[/]")
    return 0 if went_well else 1


if __name__ == "__main__":
    sys.exit(main())

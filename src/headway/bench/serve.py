"""`headway bench serve`: a server under load, as its clients see it."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headway.bench import plot
from headway.bench.datasets import Dataset, Target, Workload
from headway.bench.load import LoadGenerator, LoadRequest, LoadResult
from headway.bench.plot import PlotOption
from headway.bench.report import Row, block, figures
from headway.bench.server_process import ServerError, ServerProcess, exit_on_sigterm
from headway.commands.lists import positive_numbers
from headway.commands.remote_options import ApiKeyOption, key_headers
from headway.commands.server_urls import server_url

_LENGTHS = "Lengths of --dataset random"
_TRACES = "Traces"


def command(
    dataset: Annotated[
        Dataset | None,
        typer.Option(
            metavar="NAME",
            help="random (token ids), heldout (problems of the embedded model, whose answers are graded), "
            "azure or mooncake (recorded traffic).",
            show_default="heldout for the embedded model; random for others",
        ),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(help="Requests to send.", show_default="200; all of a trace")
    ] = None,
    request_rate: Annotated[
        Sequence[float] | None,
        typer.Option(
            parser=positive_numbers(),
            metavar="RATE,...",
            help="Requests per second, or inf for all at once; several rates are run one after the other.",
            show_default="inf; a trace has its own times",
        ),
    ] = None,
    burstiness: Annotated[
        float, typer.Option(help="Evenness of arrivals: 1 is a Poisson process, below 1 comes in bursts.")
    ] = 1.0,
    max_concurrency: Annotated[
        int | None, typer.Option(help="The most requests in flight.", show_default="no limit")
    ] = None,
    ignore_eos: Annotated[
        bool | None,
        typer.Option(
            "--ignore-eos/--no-ignore-eos",
            help="Generate exactly the number of tokens asked for.",
            show_default="yes, but not for heldout",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests at the same times.")] = 0,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The server to measure.", show_default="the command starts a server"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model to ask for at --base-url; without --base-url, the model to serve.",
            show_default="the server's first model; the embedded model",
        ),
    ] = None,
    api_key: ApiKeyOption = None,
    serve_args: Annotated[
        str,
        typer.Option(
            help='Options of the server that the command starts: "--scheduler v1 --max-num-seqs 64".',
            show_default=False,
        ),
    ] = "",
    max_model_len: Annotated[
        int | None, typer.Option(help="The most tokens of a request.", show_default="the limit of the server")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per run and line.")] = False,
    plot_file: PlotOption = None,
    save_result: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the JSON lines to a file as well.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Traffic to replay, in Azure's or Mooncake's format.",
            show_default="the repository's excerpt",
            rich_help_panel=_TRACES,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Replay only the first minutes.", show_default="all", rich_help_panel=_TRACES),
    ] = None,
    time_scale: Annotated[
        float,
        typer.Option(help="Multiplies times between arrivals: 0.5 is twice as fast.", rich_help_panel=_TRACES),
    ] = 1.0,
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt.", rich_help_panel=_LENGTHS)] = 128,
    output_len: Annotated[int, typer.Option(help="Tokens to generate.", rich_help_panel=_LENGTHS)] = 32,
    prefix_len: Annotated[
        int, typer.Option(help="Tokens that all prompts share, before --input-len.", rich_help_panel=_LENGTHS)
    ] = 0,
    range_ratio: Annotated[
        float, typer.Option(help="Spread: uniform in mean × (1 ± this).", rich_help_panel=_LENGTHS)
    ] = 0.0,
) -> None:
    """Put a server under load and report throughput and latencies.

    TTFT: from sending a request to its first token. TPOT: mean time between its tokens.
    ITL: between pieces as they arrive. E2EL: from sending to the end of the answer.
    A percentile with too few samples is not reported.
    """
    try:
        workload = Workload(
            dataset=dataset,
            num_prompts=num_prompts,
            burstiness=burstiness,
            trace=trace,
            minutes=minutes,
            time_scale=time_scale,
            input_len=input_len,
            output_len=output_len,
            prefix_len=prefix_len,
            range_ratio=range_ratio,
            max_model_len=max_model_len,
            seed=seed,
        )
        if workload.is_trace and request_rate is not None:
            raise ValueError("--request-rate does not go with a trace, which has its own times: see --time-scale")
        rates = request_rate or (math.inf,)
        if max_concurrency is not None and max_concurrency < 1:
            raise ValueError(f"--max-concurrency must be at least 1, got {max_concurrency}")
        if base_url is not None and serve_args:
            raise ValueError("--serve-args is for a server started here, not for one at --base-url")
        if save_result is not None and not save_result.parent.is_dir():
            raise ValueError(f"--save-result: no such folder: {save_result.parent}")
        plot.check(plot_file)
        with _server(base_url, model, serve_args) as url:
            headers = key_headers(api_key)
            target = Target.ask(url, model if base_url is not None else None, headers)
            workload = workload.for_model(target.model)
            if ignore_eos is None:
                ignore_eos = workload.dataset is not Dataset.HELDOUT
            runs = [(rate, workload.requests(target, rate)) for rate in rates]
            generator = LoadGenerator(url, target.model, ignore_eos=ignore_eos, headers=headers)
            asyncio.run(_warm_up(generator, runs[0][1]))
            rows = []
            for rate, requests in runs:
                settings: Row = {
                    "benchmark": "serve",
                    "model": target.model,
                    "dataset": workload.dataset,
                    "num_prompts": len(requests),
                    "request_rate_req_per_s": rate if math.isfinite(rate) else None,
                    "burstiness": burstiness,
                    "max_concurrency": max_concurrency,
                    "ignore_eos": ignore_eos,
                    "seed": seed,
                }
                result = _run(generator, requests, max_concurrency, quiet=as_json)
                rows.append(settings | figures(result))
                typer.echo(json.dumps(rows[-1]) if as_json else block(rows[-1]))
                _complain(result)
    except ServerError as error:
        print(f"headway: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if save_result is not None:
        save_result.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if plot_file is not None:
        _draw(rows, plot_file)
    if any(not row["successful_requests"] for row in rows):
        raise typer.Exit(1)


def _draw(rows: Sequence[Row], file: Path) -> None:
    """Throughput, times to the first token and times between pieces, of each run."""
    throughput, first, between = {}, {}, {}
    for row in rows:
        rate = row["request_rate_req_per_s"]
        unpaced = "all at once" if row["dataset"] in (Dataset.RANDOM, Dataset.HELDOUT) else "as recorded"
        label = unpaced if rate is None else f"{rate:g} requests/s"
        output = row["output_throughput_tok_per_s"]
        throughput[label] = {"output": output, "input": row["total_throughput_tok_per_s"] - output}
        first[label], between[label] = _latency(row, "ttft"), _latency(row, "itl")
    title = f"{rows[0]['model']}: {rows[0]['num_prompts']} requests, {rows[0]['dataset']}"
    named = {
        "Throughput": ("tokens per second", throughput),
        "Time to first token": ("ms", first),
        "Time between pieces (ITL)": ("ms", between),
    }
    plot.panels(file, title, named)


def _latency(row: Row, name: str) -> dict[str, float | None]:
    """The parts of a bar that ends at the 99th percentile, or at the median where it takes more samples."""
    median, p99 = row[f"median_{name}_ms"], row[f"p99_{name}_ms"]
    return {"median": median, "up to p99": None if p99 is None else p99 - median}


@contextmanager
def _server(base_url: str | None, model: str | None, serve_args: str) -> Iterator[str]:
    """The URL of the server to measure. A server that is started here ends with the block."""
    if base_url is not None:
        yield server_url(base_url).removesuffix("/v1")
        return
    exit_on_sigterm()
    with ServerProcess([*([model] if model else []), *shlex.split(serve_args)]) as server:
        yield server.base_url


async def _warm_up(generator: LoadGenerator, requests: Sequence[LoadRequest]) -> None:
    """One request that does not count: it pays for work that happens once, and shows early that the server fails."""
    result = await generator.run([LoadRequest(0.0, requests[0].prompt, requests[0].max_tokens)])
    if error := result.outcomes[0].error:
        raise ServerError(f"a first request failed: {error}")


def _run(
    generator: LoadGenerator, requests: Sequence[LoadRequest], max_concurrency: int | None, *, quiet: bool
) -> LoadResult:
    console = Console(stderr=True)
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=len(requests))
        return asyncio.run(
            generator.run(requests, max_concurrency=max_concurrency, on_done=lambda _: progress.advance(task))
        )


def _complain(result: LoadResult) -> None:
    """Print why requests failed: each reason once, on standard error."""
    reasons: dict[str, int] = {}
    for outcome in result.outcomes:
        if outcome.error is not None:
            reasons[outcome.error] = reasons.get(outcome.error, 0) + 1
    for reason, count in list(reasons.items())[:5]:
        print(f"headway: {count} failed: {reason}", file=sys.stderr)
